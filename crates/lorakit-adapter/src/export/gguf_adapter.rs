//! GGUF adapters for llama.cpp, as its `convert_lora_to_gguf.py` writes them.
//!
//! llama.cpp scales an update by `alpha / rank` with one alpha for all modules, so other scales are folded into B.

use std::path::Path;

use lorakit_format::gguf::{GgmlType, GgufHeader, GgufTensor, GgufValue, write_file};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::gguf_names::{
    EMBEDDING_TENSOR, architecture_name, head_count, llama_cpp_row_order, reordered_heads, tensor_name,
};
use crate::library::base_identity::BaseIdentity;
use crate::low_rank::LowRank;

/// An adapter as llama.cpp's tensors.
pub struct GgufExport {
    header: GgufHeader,
    /// The values of each tensor, in the header's order.
    values: Vec<Vec<f32>>,
}

impl GgufExport {
    /// The tensors of `adapter` for `base`.
    ///
    /// # Errors
    /// If llama.cpp's name of the base's architecture, or of a module, is not known, or a module is not of the base's heads.
    pub fn new(name: &str, adapter: &Adapter, base: &BaseIdentity) -> Result<Self> {
        let architecture = architecture_name(&base.architecture)
            .ok_or_else(|| AdapterError::GgufArchitecture { architecture: base.architecture.clone() })?;
        let alpha = common_alpha(adapter);
        let text = |text: &str| GgufValue::Text(text.to_owned());
        let metadata = [
            ("general.architecture", text(architecture)),
            ("general.type", text("adapter")),
            ("adapter.type", text("lora")),
            ("general.name", text(name)),
            // All tensors are F32.
            ("general.file_type", GgufValue::U32(0)),
            ("adapter.lora.alpha", GgufValue::F32(alpha)),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
        let mut export = Self { header: GgufHeader { metadata, tensors: Vec::new() }, values: Vec::new() };
        for (module, update) in adapter.modules() {
            let tensor = tensor_name(module).ok_or_else(|| AdapterError::GgufModule { module: module.clone() })?;
            let heads = reordered_heads(module, architecture)
                .map(|heads| head_count(heads, base).ok_or(AdapterError::GgufHeads));
            let pushed = heads.transpose().and_then(|heads| export.push(&tensor, update, alpha, heads));
            pushed.within(|| format!("module `{module}`"))?;
        }
        Ok(export)
    }

    /// Adds the two tensors of a module; `heads`: of how many heads its outputs are reordered.
    fn push(&mut self, tensor: &str, update: &LowRank, alpha: f32, heads: Option<usize>) -> Result<()> {
        let (b, rank) = (update.b().values(), update.rank());
        // What llama.cpp multiplies by is computed as it computes it, in f32; a rounding of the common scale alone is not
        // folded into B, so that B stays as it is.
        let factor = match GgufValue::F32(alpha).as_f64().unwrap_or_default() / rank as f64 {
            common if common == update.scale() => 1.0,
            _ => update.scale() / f64::from(alpha / rank as f32),
        };
        let scaled = |value: f32| if factor == 1.0 { value } else { (f64::from(value) * factor) as f32 };
        let mut rows: Vec<&[f32]> = b.chunks_exact(rank).collect();
        if let Some(heads) = heads {
            let order = llama_cpp_row_order(rows.len(), heads)?;
            rows.clone().into_iter().zip(order).for_each(|(row, place)| rows[place] = row);
        }
        let b: Vec<f32> = rows.into_iter().flatten().map(|&value| scaled(value)).collect();
        // llama.cpp reads the A of an embedding by token.
        let (a, shape) = match tensor {
            EMBEDDING_TENSOR => (update.a().transposed().values().into_owned(), vec![update.input(), rank]),
            _ => (update.a().values().into_owned(), vec![rank, update.input()]),
        };
        for (suffix, shape, values) in [("lora_a", shape, a), ("lora_b", vec![update.output(), rank], b)] {
            let name = format!("{tensor}.{suffix}");
            self.header.tensors.push(GgufTensor { name, shape, dtype: GgmlType::F32 });
            self.values.push(values);
        }
        Ok(())
    }

    /// Writes the file, which appears whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut values = self.values.iter();
        Ok(write_file(path, &self.header, |_| {
            values.next().into_iter().flatten().flat_map(|value| value.to_le_bytes()).collect()
        })?)
    }
}

/// The alpha that most modules have: theirs is not folded into B.
fn common_alpha(adapter: &Adapter) -> f32 {
    let alphas: Vec<f32> =
        adapter.modules().values().map(|update| (update.scale() * update.rank() as f64) as f32).collect();
    let count = |alpha: f32| alphas.iter().filter(|&&other| other == alpha).count();
    let common = alphas.iter().copied().reduce(|best, other| if count(other) > count(best) { other } else { best });
    // llama.cpp takes an alpha of 0 for none, and then does not scale.
    common.filter(|&alpha| alpha != 0.0).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::matrix::Matrix;
    use std::collections::BTreeMap;

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

    fn adapter(modules: &[(&str, usize, f64)]) -> Adapter {
        let update = |outputs: usize, scale: f64| {
            let b = Matrix::new(outputs, 1, (0..outputs).map(|row| row as f32).collect()).unwrap();
            LowRank::new(Matrix::new(1, 3, vec![1.0, 2.0, 3.0]).unwrap(), b, scale).unwrap()
        };
        let modules = modules.iter().map(|&(path, outputs, scale)| (path.to_owned(), update(outputs, scale)));
        Adapter::new(modules.collect::<BTreeMap<_, _>>())
    }

    fn values<'a>(export: &'a GgufExport, name: &str) -> &'a [f32] {
        let at = export.header.tensors.iter().position(|tensor| tensor.name == name).unwrap();
        &export.values[at]
    }

    #[test]
    fn queries_and_keys_of_llama_are_reordered() {
        let modules = [
            ("model.layers.3.self_attn.q_proj", 8, 2.0),
            ("model.layers.3.self_attn.k_proj", 4, 2.0),
            ("lm_head", 2, 2.0),
        ];
        let export = GgufExport::new("e", &adapter(&modules), &base("mistral")).unwrap();
        assert_eq!(values(&export, "blk.3.attn_q.weight.lora_b"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(values(&export, "blk.3.attn_k.weight.lora_b"), [0.0, 2.0, 1.0, 3.0]);
        assert_eq!(values(&export, "output.weight.lora_b"), [0.0, 1.0]);
        assert_eq!(values(&export, "blk.3.attn_q.weight.lora_a"), [1.0, 2.0, 3.0]);
        for (model_type, name) in [("ministral3", "mistral3"), ("mistral3", "mistral3"), ("granite", "granite")] {
            let within =
                modules.map(|(path, outputs, scale)| (path.replace("model.", "model.language_model."), outputs, scale));
            let within: Vec<_> =
                within.iter().map(|(path, outputs, scale)| (path.as_str(), *outputs, *scale)).collect();
            let other = GgufExport::new("e", &adapter(&within), &base(model_type)).unwrap();
            let architecture = GgufValue::Text(name.to_owned());
            assert!(other.header.metadata.contains(&("general.architecture".to_owned(), architecture)));
            for tensor in ["blk.3.attn_q.weight.lora_b", "blk.3.attn_k.weight.lora_b", "output.weight.lora_b"] {
                assert_eq!(values(&other, tensor), values(&export, tensor), "{model_type}");
            }
        }
        let plain = GgufExport::new("e", &adapter(&modules[..1]), &base("qwen2")).unwrap();
        assert_eq!(values(&plain, "blk.3.attn_q.weight.lora_b"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn other_scales_are_folded_into_b() {
        let modules = [
            ("model.layers.0.mlp.up_proj", 2, 2.0),
            ("model.layers.0.mlp.down_proj", 2, 2.0),
            ("model.layers.1.mlp.up_proj", 2, 0.5),
        ];
        let export = GgufExport::new("e", &adapter(&modules), &base("llama")).unwrap();
        assert!(export.header.metadata.contains(&("adapter.lora.alpha".to_owned(), GgufValue::F32(2.0))));
        assert_eq!(values(&export, "blk.0.ffn_up.weight.lora_b"), [0.0, 1.0]);
        assert_eq!(values(&export, "blk.1.ffn_up.weight.lora_b"), [0.0, 0.25]);
    }

    #[test]
    fn what_llama_cpp_cannot_hold_is_refused_by_name() {
        let error =
            |adapter: &Adapter, base: &BaseIdentity| GgufExport::new("e", adapter, base).err().unwrap().to_string();
        let one = adapter(&[("model.layers.0.mlp.router", 2, 1.0)]);
        assert!(error(&one, &base("llama")).contains("model.layers.0.mlp.router"));
        assert!(error(&one, &base("unheard_of")).contains("unheard_of"));
    }

    #[test]
    fn rows_of_unknown_or_other_heads_are_refused() {
        let chain = |outputs: usize, base: &BaseIdentity| {
            let adapter = adapter(&[("model.layers.0.self_attn.q_proj", outputs, 1.0)]);
            GgufExport::new("e", &adapter, base).err().unwrap().chain()
        };
        let other = chain(6, &base("llama"));
        assert!(other.contains("q_proj") && other.contains("not 2 heads of an even size"), "{other}");
        let unknown = chain(8, &BaseIdentity { dimensions: BTreeMap::new(), ..base("llama") });
        assert!(unknown.contains("q_proj") && unknown.contains("--base"), "{unknown}");
    }
}
