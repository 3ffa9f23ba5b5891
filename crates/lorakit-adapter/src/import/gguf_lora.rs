//! GGUF adapters, as llama.cpp's `convert_lora_to_gguf.py` and the export of a library write them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use half::f16;
use lorakit_format::gguf::{GgmlType, GgufEntry, GgufFile, GgufValue};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::gguf_names::{
    EMBEDDING, EMBEDDING_TENSOR, architecture_name, head_count, llama_cpp_row_order, module_path, reordered_heads,
};
use crate::library::base_identity::BaseIdentity;
use crate::low_rank::LowRank;
use crate::matrix::{Matrix, Precision};
use crate::name_list::quote_names;
use crate::peft::peft_config::AdapterMetadata;
use crate::warning::Warning;

const ALPHA: &str = "adapter.lora.alpha";
const ARCHITECTURE: &str = "general.architecture";

/// Where the repository of the base is named, on the Hub.
const BASE_URL: &str = "general.base_model.0.repo_url";
const HUB: &str = "https://huggingface.co/";

impl Adapter {
    /// Reads a GGUF adapter for `base`, whose head counts say how rows of queries and keys were reordered. Adapters of
    /// architectures or modules without such rows need no base.
    ///
    /// # Errors
    /// If the file is not one complete, plain LoRA adapter whose tensors have modules in Hugging Face's models, or needs a
    /// base that is not given. The error names the file and the key or tensor.
    pub fn read_gguf(path: &Path, base: Option<&BaseIdentity>) -> Result<Self> {
        let file = GgufFile::open(path)?;
        GgufLora::of(&file)?.adapter(base).within_file(path)
    }
}

/// The tensors of one adapter.
struct GgufLora<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
    /// 0 where there is none.
    alpha: f64,
    /// A and B by the tensor that they change.
    pairs: BTreeMap<&'a str, [Option<&'a GgufEntry>; 2]>,
    /// The names of norm weights.
    norms: Vec<&'a str>,
}

impl<'a> GgufLora<'a> {
    fn of(file: &'a GgufFile) -> Result<Self> {
        let text = |key: &str| file.metadata().get(key).and_then(GgufValue::as_text);
        match text("general.type") {
            Some("adapter") => {}
            Some("model") | None if file.metadata().keys().any(|key| key.starts_with("tokenizer.")) => {
                return Err(file.error("is a model, not an adapter; give it as --base").into());
            }
            found => {
                let found = found.unwrap_or("missing");
                return Err(file.error(format!("key `general.type` is {found}; expected `adapter`")).into());
            }
        }
        match text("adapter.type") {
            Some("lora") => {}
            found => {
                let found = found.unwrap_or("missing");
                return Err(file.error(format!("key `adapter.type` is {found}; expected `lora`")).into());
            }
        }
        if file.metadata().keys().any(|key| key.starts_with("adapter.alora.")) {
            let reason = "is an activated LoRA (aLoRA), which changes only the tokens after its invocation; lorakit reads \
                          plain LoRA adapters";
            return Err(file.error(reason).into());
        }
        let alpha = match file.metadata().get(ALPHA) {
            None => 0.0,
            Some(value) => value
                .as_f64()
                .filter(|alpha| alpha.is_finite())
                .ok_or_else(|| file.error(format!("key `{ALPHA}` is {value:?}; expected a finite number")))?,
        };
        let architecture = text(ARCHITECTURE).ok_or_else(|| file.error(format!("key `{ARCHITECTURE}` is missing")))?;
        let mut pairs: BTreeMap<&str, [Option<&GgufEntry>; 2]> = BTreeMap::new();
        let mut norms = Vec::new();
        for (name, entry) in file.tensors() {
            if name.ends_with("_norm.weight") {
                norms.push(name.as_str());
                continue;
            }
            let Some((tensor, factor)) =
                name.rsplit_once('.').filter(|(_, factor)| ["lora_a", "lora_b"].contains(factor))
            else {
                let reason =
                    format!("tensor `{name}` does not belong to a plain LoRA; expected NAME.lora_a and NAME.lora_b");
                return Err(file.error(reason).into());
            };
            pairs.entry(tensor).or_default()[usize::from(factor == "lora_b")] = Some(entry);
        }
        if pairs.is_empty() {
            let found = if norms.is_empty() { "holds no tensors" } else { "holds no LoRA, only weights of norms" };
            return Err(file.error(found).into());
        }
        Ok(Self { file, architecture, alpha, pairs, norms })
    }

    fn adapter(&self, base: Option<&BaseIdentity>) -> Result<Adapter> {
        if let Some(base) = base
            && let Some(name) = architecture_name(&base.architecture).filter(|name| *name != self.architecture)
        {
            let (key, own) = (ARCHITECTURE, self.architecture);
            return Err(AdapterError::AdapterBase(format!(
                "key `{key}` is {own}, but the base `{}` is llama.cpp's {name}; give the base of the adapter",
                base.name
            )));
        }
        let (mut modules, mut embeddings) = (BTreeMap::new(), BTreeSet::new());
        for (&tensor, pair) in &self.pairs {
            let module = module_path(tensor, self.architecture).ok_or_else(|| AdapterError::GgufTensor {
                tensor: tensor.to_owned(),
                architecture: self.architecture.to_owned(),
            })?;
            let update = self.update(tensor, &module, *pair, base).within(|| format!("tensor `{tensor}`"))?;
            if module == EMBEDDING {
                embeddings.insert(module.clone());
            }
            modules.insert(module, update);
        }
        let url = self.file.metadata().get(BASE_URL).and_then(GgufValue::as_text);
        let base_model = url.and_then(|url| url.strip_prefix(HUB)).map(str::to_owned);
        let metadata = AdapterMetadata { base_model, embeddings, ..AdapterMetadata::default() };
        let adapter = Adapter::new(modules).with_metadata(metadata);
        if self.norms.is_empty() {
            return Ok(adapter);
        }
        let names = quote_names(&self.norms);
        let text = format!(
            "norm weights, which mergekit-extract-lora copies from its model, are ignored, as in llama.cpp: {names}"
        );
        Ok(adapter.with_warning(Warning::new("norms", text)))
    }

    /// The update of a module.
    fn update(
        &self,
        tensor: &str,
        module: &str,
        pair: [Option<&GgufEntry>; 2],
        base: Option<&BaseIdentity>,
    ) -> Result<LowRank> {
        let missing =
            |factor: &str| AdapterError::Tensors(format!("`{tensor}.{factor}` is missing; the file is incomplete"));
        let [a, b] = pair;
        let mut a = self.matrix(a.ok_or_else(|| missing("lora_a"))?)?;
        let mut b = self.matrix(b.ok_or_else(|| missing("lora_b"))?)?;
        if tensor == EMBEDDING_TENSOR {
            a = a.transposed();
        }
        if let Some(dimension) = reordered_heads(module, self.architecture) {
            let heads = base.and_then(|base| head_count(dimension, base)).ok_or(AdapterError::GgufHeads)?;
            b = with_halves_apart(&b, heads)?;
        }
        let scale = if self.alpha == 0.0 { 1.0 } else { self.alpha / a.rows() as f64 };
        LowRank::new(a, b, scale)
    }

    /// The values of a tensor, which stay in the file unless they are quantized.
    fn matrix(&self, entry: &GgufEntry) -> Result<Matrix> {
        let &[rows, cols] = entry.shape.as_slice() else {
            return Err(AdapterError::Shape(format!("has shape {:?}; expected two dimensions", entry.shape)));
        };
        let precision = match entry.dtype {
            GgmlType::F32 => Precision::F32,
            GgmlType::F16 => Precision::F16,
            GgmlType::BF16 => Precision::Bf16,
            GgmlType { name: "Q8_0", .. } => {
                return Matrix::new(rows, cols, dequantized(&self.file.bytes()[entry.bytes.clone()]));
            }
            other => {
                return Err(AdapterError::Tensors(format!(
                    "found values of type {other}; expected F32, F16, BF16 or Q8_0: convert the adapter with --outtype f16"
                )));
            }
        };
        Matrix::in_file([rows, cols], self.file.bytes().clone(), entry.bytes.clone(), precision)
    }
}

/// The values of blocks of GGML's type Q8_0: a scale in f16, and 32 values of 8 bits.
fn dequantized(blocks: &[u8]) -> Vec<f32> {
    let (blocks, _) = blocks.as_chunks::<34>();
    let values = |block: &[u8; 34]| {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        block.map(|value| f32::from(value.cast_signed()) * scale).into_iter().skip(2)
    };
    blocks.iter().flat_map(values).collect()
}

/// A matrix with its rows in Hugging Face's order, whose rows are those of `heads` heads in llama.cpp's.
fn with_halves_apart(matrix: &Matrix, heads: usize) -> Result<Matrix> {
    let (rows, cols, values) = (matrix.rows(), matrix.cols(), matrix.values());
    let order = llama_cpp_row_order(rows, heads)?;
    Matrix::new(rows, cols, order.into_iter().flat_map(|row| &values[row * cols..][..cols]).copied().collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::export::gguf_adapter::GgufExport;
    use lorakit_format::gguf::{GgufHeader, GgufTensor, write_file};
    use std::path::PathBuf;
    use tempfile::TempDir;

    fn base(architecture: &str) -> BaseIdentity {
        let dimensions = [("heads", 2), ("kv_heads", 1), ("head_dim", 4)];
        BaseIdentity {
            name: "b".to_owned(),
            on_hub: None,
            architecture: architecture.to_owned(),
            dimensions: dimensions.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            fingerprint: String::new(),
            form: None,
        }
    }

    fn update(rank: usize, input: usize, output: usize, scale: f64) -> LowRank {
        let values = |count: usize, step: usize| (0..count).map(|at| ((at * step) % 23) as f32 / 7.0 - 1.5).collect();
        let a = Matrix::new(rank, input, values(rank * input, 5)).unwrap();
        LowRank::new(a, Matrix::new(output, rank, values(output * rank, 3)).unwrap(), scale).unwrap()
    }

    fn adapter(modules: &[(&str, LowRank)], embeddings: &[&str]) -> Adapter {
        let embeddings = embeddings.iter().map(|path| (*path).to_owned()).collect();
        let modules = modules.iter().map(|(path, update)| ((*path).to_owned(), update.clone())).collect();
        Adapter::new(modules).with_metadata(AdapterMetadata { embeddings, ..AdapterMetadata::default() })
    }

    #[test]
    fn an_exported_adapter_is_read_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.gguf");
        let layer = |part: &str| format!("model.layers.3.{part}");
        let (q, k, o) = (layer("self_attn.q_proj"), layer("self_attn.k_proj"), layer("self_attn.o_proj"));
        let llama = adapter(
            &[
                (&q, update(3, 6, 8, 2.0 / 3.0)),
                (&k, update(3, 6, 4, 2.0 / 3.0)),
                (&o, update(3, 8, 6, 2.0 / 3.0)),
                ("lm_head", update(3, 6, 9, 2.0 / 3.0)),
                (EMBEDDING, update(3, 9, 6, 2.0 / 3.0)),
            ],
            &[EMBEDDING],
        );
        let (qkv, gate_up) = (layer("self_attn.qkv_proj"), layer("mlp.gate_up_proj"));
        let phi3 = adapter(&[(&qkv, update(2, 6, 8, 4.0)), (&gate_up, update(2, 6, 10, 4.0))], &[]);
        let (dense, fc1, fc2) = (layer("self_attn.dense"), layer("mlp.fc1"), layer("mlp.fc2"));
        let phi =
            adapter(&[(&dense, update(1, 4, 4, 1.0)), (&fc1, update(1, 4, 6, 1.0)), (&fc2, update(1, 6, 4, 1.0))], &[]);
        let qwen = adapter(&[(&q, update(4, 6, 8, 0.25)), (&k, update(4, 6, 4, 0.25))], &[]);
        for (architecture, adapter) in [("mistral", llama), ("phi3", phi3), ("phi", phi), ("qwen2", qwen)] {
            let base = base(architecture);
            GgufExport::new("e", &adapter, &base).unwrap().write(&path).unwrap();
            let read = Adapter::read_gguf(&path, Some(&base)).unwrap();
            assert_eq!(read.modules(), adapter.modules(), "{architecture}");
            assert_eq!(read.metadata().embeddings, adapter.metadata().embeddings);
            let without = Adapter::read_gguf(&path, None);
            match architecture {
                "mistral" => assert!(chain(without).contains("--base"), "it needs head counts"),
                _ => assert_eq!(without.unwrap().modules(), adapter.modules()),
            }
        }
    }

    fn chain(read: Result<Adapter>) -> String {
        read.unwrap_err().chain()
    }

    /// The file of an adapter of the rank 2 for 6 inputs and 8 outputs, after a change, with its folder.
    fn file(change: impl FnOnce(&mut GgufHeader)) -> (TempDir, PathBuf) {
        let text = |text: &str| GgufValue::Text(text.to_owned());
        let tensor = |name: &str, shape: [usize; 2]| GgufTensor {
            name: name.to_owned(),
            shape: shape.into(),
            dtype: GgmlType::F32,
        };
        let metadata = [
            ("general.type", text("adapter")),
            ("adapter.type", text("lora")),
            ("general.architecture", text("llama")),
            (ALPHA, GgufValue::F32(8.0)),
        ];
        let mut header = GgufHeader {
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
            tensors: vec![tensor("blk.0.attn_v.weight.lora_a", [2, 6]), tensor("blk.0.attn_v.weight.lora_b", [8, 2])],
        };
        change(&mut header);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        write_file(&path, &header, |tensor| vec![0; tensor.bytes()]).unwrap();
        (folder, path)
    }

    fn written(change: impl FnOnce(&mut GgufHeader)) -> Result<Adapter> {
        let (_folder, path) = file(change);
        Adapter::read_gguf(&path, None)
    }

    #[test]
    fn alpha_is_divided_by_the_rank_and_may_be_missing() {
        let scale = |adapter: Adapter| adapter.modules()["model.layers.0.self_attn.v_proj"].scale();
        assert_eq!(scale(written(|_| {}).unwrap()), 4.0);
        assert_eq!(scale(written(|header| header.metadata.retain(|(key, _)| key != ALPHA)).unwrap()), 1.0);
    }

    #[test]
    fn quantized_factors_have_the_values_of_their_blocks() {
        // A row of 64 values: two blocks with the scales 0.5 and 2.
        let block = |scale: f32, first: i8| {
            let values = (0..32).map(|at| (first + at).cast_unsigned());
            f16::from_f32(scale).to_le_bytes().into_iter().chain(values).collect::<Vec<u8>>()
        };
        let row = [block(0.5, -16), block(2.0, 0)].concat();
        let (_folder, path) = file(|header| {
            header.tensors[0].shape = vec![2, 64];
            header.tensors[0].dtype = GgmlType::by_name("Q8_0").unwrap();
        });
        let mut bytes = std::fs::read(&path).unwrap();
        let start = GgufFile::open(&path).unwrap().tensors()["blk.0.attn_v.weight.lora_a"].bytes.clone();
        bytes[start].copy_from_slice(&row.repeat(2));
        std::fs::write(&path, bytes).unwrap();
        let read = Adapter::read_gguf(&path, None).unwrap();
        let a = read.modules()["model.layers.0.self_attn.v_proj"].a().values().into_owned();
        assert_eq!((a[0], a[31], a[32], a[33], a[63]), (-8.0, 7.5, 0.0, 2.0, 62.0));
        assert_eq!(a[..64], a[64..]);
    }

    /// As mergekit-extract-lora writes them.
    #[test]
    fn weights_of_norms_are_left_out_with_a_warning() {
        let norm = GgufTensor { name: "blk.0.attn_norm.weight".to_owned(), shape: vec![6], dtype: GgmlType::F32 };
        let read = written(|header| header.tensors.push(norm.clone())).unwrap();
        assert_eq!(read.modules().len(), 1);
        assert!(read.warnings()[0].text.contains("`blk.0.attn_norm.weight`"), "{:?}", read.warnings());
        let alone = written(|header| header.tensors = vec![norm]);
        assert!(chain(alone).contains("holds no LoRA, only weights of norms"));
    }

    #[test]
    fn what_is_no_plain_adapter_is_refused_by_name() {
        let set = |key: &'static str, value: GgufValue| {
            chain(written(|header| {
                header.metadata.retain(|(other, _)| other != key);
                header.metadata.push((key.to_owned(), value));
            }))
        };
        let text = |text: &str| GgufValue::Text(text.to_owned());
        assert!(set("general.type", text("imatrix")).contains("`general.type` is imatrix"));
        assert!(set("adapter.type", text("control_vector")).contains("`adapter.type` is control_vector"));
        assert!(set("adapter.alora.invocation_tokens", GgufValue::Array(Vec::new())).contains("aLoRA"));
        assert!(set(ALPHA, GgufValue::F32(f32::NAN)).contains("finite"));
        assert!(set("general.architecture", text("mamba")).contains("`mamba`"));
        let named = |name: &'static str| chain(written(|header| header.tensors[1].name = name.to_owned()));
        assert!(named("blk.0.attn_v.weight.lora_c").contains("blk.0.attn_v.weight.lora_c"));
        assert!(named("blk.0.ssm_in.weight.lora_b").contains("`blk.0.attn_v.weight.lora_b` is missing"));
        assert!(
            chain(written(|header| header
                .tensors
                .iter_mut()
                .for_each(|tensor| tensor.name = tensor.name.replace("attn_v", "ssm_in"))))
            .contains("`blk.0.ssm_in.weight`")
        );
        let (_folder, path) = file(|_| {});
        let other = Adapter::read_gguf(&path, Some(&base("qwen2")));
        assert!(chain(other).contains("is llama, but the base `b` is llama.cpp's qwen2"));
        assert!(chain(written(|header| header.tensors.clear())).contains("no tensors"));
        assert!(chain(written(|header| header.tensors[1].shape = vec![8, 3])).contains("A is [2, 6] and B is [8, 3]"));
        assert!(chain(written(|header| header.tensors[1].shape = vec![16])).contains("two dimensions"));
    }
}
