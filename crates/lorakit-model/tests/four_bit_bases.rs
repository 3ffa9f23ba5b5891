//! Bases in the 4 bits of bitsandbytes: weights and logits are those of the dequantized folder.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{DType, Device, Tensor, safetensors};
use differences::{largest, largest_difference};
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::{Base, BaseOptions};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// NF4's 16 levels: QLoRA, <https://arxiv.org/abs/2305.14314>, appendix E.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const BLOCK: usize = 64;
const NESTED_BLOCK: usize = 256;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft").join(name)
}

/// The number of the level that is nearest to `value`.
fn nearest(levels: &[f32], value: f32) -> usize {
    let distance = |level: &f32| (level - value).abs();
    (0..levels.len()).min_by(|&a, &b| distance(&levels[a]).total_cmp(&distance(&levels[b]))).unwrap()
}

/// A base as bitsandbytes stores it, and the same with its values dequantized, in two folders.
struct Quantized {
    folder: tempfile::TempDir,
    stored: HashMap<String, Tensor>,
    plain: HashMap<String, Tensor>,
}

impl Quantized {
    /// Quantizes every matrix of the layers of a base, whose type becomes `dtype`, with scales in 8 bits if `nested`.
    fn new(base: &Path, dtype: DType, nested: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut made = Self { folder, stored: HashMap::new(), plain: HashMap::new() };
        for (name, tensor) in safetensors::load(base.join("model.safetensors"), &Device::Cpu).unwrap() {
            let tensor = tensor.to_dtype(dtype).unwrap();
            if name.contains("layers.") && tensor.rank() == 2 {
                made.quantize(&name, &tensor, nested);
            } else {
                made.stored.insert(name.clone(), tensor.clone());
                made.plain.insert(name, tensor);
            }
        }
        let mut config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
        made.write("plain", &config, &made.plain);
        config["quantization_config"] = json!({
            "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "bfloat16",
        });
        made.write("stored", &config, &made.stored);
        made
    }

    fn write(&self, name: &str, config: &Value, tensors: &HashMap<String, Tensor>) {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        safetensors::save(tensors, folder.join("model.safetensors")).unwrap();
    }

    /// The arithmetic of `bitsandbytes.functional.quantize_4bit` and `dequantize_4bit`.
    fn quantize(&mut self, name: &str, tensor: &Tensor, nested: bool) {
        let dtype = tensor.dtype();
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = |block: &[f32]| block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let mut scales: Vec<f32> = values.chunks(BLOCK).map(largest).collect();
        let mut state =
            json!({"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype_name(dtype), "shape": tensor.dims()});
        let vector = |values: Vec<f32>| Tensor::new(values, &Device::Cpu).unwrap();
        let bytes = |bytes: Vec<u8>| Tensor::new(bytes, &Device::Cpu).unwrap();
        let mut put = |suffix: &str, tensor: Tensor| self.stored.insert(format!("{name}{suffix}"), tensor);
        if nested {
            let offset = scales.iter().sum::<f32>() / scales.len() as f32;
            let code: Vec<f32> = (0..256).map(|level| (level as f32 - 127.5) / 127.5).collect();
            let centered: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
            let nested_scales: Vec<f32> = centered.chunks(NESTED_BLOCK).map(largest).collect();
            let level = |(at, value): (usize, &f32)| nearest(&code, value / nested_scales[at / NESTED_BLOCK]) as u8;
            let levels: Vec<u8> = centered.iter().enumerate().map(level).collect();
            let of_level =
                |(at, &level): (usize, &u8)| code[usize::from(level)] * nested_scales[at / NESTED_BLOCK] + offset;
            scales = levels.iter().enumerate().map(of_level).collect();
            state["nested_blocksize"] = NESTED_BLOCK.into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = f64::from(offset).into();
            put(".absmax", bytes(levels));
            put(".nested_absmax", vector(nested_scales));
            put(".nested_quant_map", vector(code));
        } else {
            put(".absmax", vector(scales.clone()));
        }
        let levels: Vec<usize> =
            values.iter().enumerate().map(|(at, value)| nearest(&NF4, value / scales[at / BLOCK])).collect();
        let packed: Vec<u8> =
            levels.chunks(2).map(|pair| ((pair[0] << 4) | pair.get(1).copied().unwrap_or(0)) as u8).collect();
        let count = packed.len();
        put("", Tensor::from_vec(packed, (count, 1), &Device::Cpu).unwrap());
        put(".quant_map", vector(NF4.to_vec()));
        put(".quant_state.bitsandbytes__nf4", bytes(state.to_string().into_bytes()));
        let dequantized: Vec<f32> =
            levels.iter().enumerate().map(|(at, &level)| NF4[level] * scales[at / BLOCK]).collect();
        let dequantized = Tensor::from_vec(dequantized, tensor.dims(), &Device::Cpu).unwrap();
        self.plain.insert(name.to_owned(), dequantized.to_dtype(dtype).unwrap());
    }

    fn open(&self, name: &str) -> Base {
        Base::open(&self.folder.path().join(name), &BaseOptions::default()).unwrap()
    }
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        other => panic!("{other:?}"),
    }
}

fn logits(base: &Base) -> Tensor {
    let ids: Vec<u32> = (0..40).map(|at| at * 7 % base.config().vocabulary as u32).collect();
    base.logits(&ids, SequenceBatch::packed([1, 16, 23]), &Patches::none()).unwrap()
}

fn assert_same_logits(what: &str, one: &Base, other: &Base) {
    let (one, other) = (logits(one), logits(other));
    let difference = largest_difference(&one, &other) / largest(&other);
    assert!(difference < 1e-5, "{what}: {difference}");
}

#[test]
fn logits_are_those_of_the_dequantized_folder() {
    for (name, dtype, nested) in [
        ("mistral", DType::BF16, true),
        ("phi", DType::F16, false),
        ("phi3", DType::F32, true),
        ("gemma3", DType::F32, false),
    ] {
        let made = Quantized::new(&fixture(name).join("base"), dtype, nested);
        let (stored, plain) = (made.open("stored"), made.open("plain"));
        assert_same_logits(name, &stored, &plain);
        assert_eq!((stored.parameters(), stored.modules()), (plain.parameters(), plain.modules()), "{name}");
        let form = stored.identity().form.clone().unwrap();
        assert!(form.starts_with("bitsandbytes ") && form.contains("NF4"), "{form}");
        assert_eq!(plain.identity().form, None);
        plain.identity().ensure_same(stored.identity()).unwrap();
    }
}

#[test]
fn the_dequantized_folder_has_exactly_the_same_weights() {
    let made = Quantized::new(&fixture("mistral").join("base"), DType::BF16, true);
    let checkpoint = lorakit_model::Checkpoint::open(&made.folder.path().join("stored")).unwrap();
    let written = made.folder.path().join("written");
    fs::create_dir(&written).unwrap();
    let edited = "model.layers.0.mlp.up_proj.weight".to_owned();
    let rounding = checkpoint.write_edited(&written, &[edited.clone()].into(), &mut |_, values| {
        values[0] += 1.0;
        Ok(())
    });
    rounding.unwrap();
    let sorted = |tensors: HashMap<String, Tensor>| tensors.into_iter().collect::<BTreeMap<_, _>>();
    let found = sorted(safetensors::load(written.join("model.safetensors"), &Device::Cpu).unwrap());
    let expected = sorted(made.plain.clone());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &found {
        let values =
            |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (found, expected) = (values(tensor), values(&made.plain[name]));
        let from = usize::from(*name == edited);
        assert_eq!((tensor.dtype(), &found[from..]), (DType::BF16, &expected[from..]), "{name}");
    }
}

/// A weight and the tensors that describe it may be in several files.
#[test]
fn tensors_of_one_weight_are_found_in_several_files() {
    let made = Quantized::new(&fixture("llama").join("base"), DType::F32, true);
    let split = made.folder.path().join("split");
    fs::create_dir(&split).unwrap();
    fs::copy(made.folder.path().join("stored/config.json"), split.join("config.json")).unwrap();
    let (mut parts, mut places) = ([HashMap::new(), HashMap::new()], serde_json::Map::new());
    for (name, tensor) in &made.stored {
        let part = usize::from(name.contains("absmax"));
        places.insert(name.clone(), format!("{part}.safetensors").into());
        parts[part].insert(name.clone(), tensor.clone());
    }
    for (part, tensors) in parts.iter().enumerate() {
        safetensors::save(tensors, split.join(format!("{part}.safetensors"))).unwrap();
    }
    fs::write(split.join("model.safetensors.index.json"), json!({ "weight_map": places }).to_string()).unwrap();
    assert_same_logits("split", &made.open("split"), &made.open("plain"));
}
