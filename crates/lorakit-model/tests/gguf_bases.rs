//! Bases in GGUF: the logits of transformers over the same weights, and what is refused.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;
#[path = "../../../tests/gguf_converter/mod.rs"]
mod gguf_converter;

use candle_core::{DType, Device, Tensor, safetensors};
use differences::{largest, largest_difference};
use gguf_converter::{GgufModel, Types};
use lorakit_format::gguf::{GgmlType, GgufShards, GgufValue};
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::architecture::{RopeScaling, gguf_config_json};
use lorakit_model::{Base, BaseConfig, BaseOptions, Checkpoint};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The bases of `tests/fixtures` whose architecture is read in GGUF, and those of ../shared.
const FIXTURES: [&str; 7] = ["mistral", "llama", "gemma3", "phi3", "qwen2", "qwen3", "gemma2"];
const SHARED: [&str; 11] = [
    "peft/mistral",
    "peft/window",
    "peft/llama3",
    "peft_modern/qwen2",
    "peft_modern/qwen3",
    "peft_modern/gemma2",
    "peft_modern/gemma3",
    "peft_modern/phi3",
    "peft_modern/phi3long",
    "peft_modern/yarn",
    "peft_modern/biased",
];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft").join(name)
}

fn shared(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

fn open(file: &Path) -> Base {
    Base::open_gguf(file, &BaseOptions::default()).unwrap()
}

fn logits(base: &Base, ids: &[Vec<u32>]) -> Tensor {
    base.logits(&ids.concat(), SequenceBatch::packed(ids.iter().map(Vec::len)), &Patches::none()).unwrap()
}

/// The tokens of an oracle, row by row, and the logits `name`, `[rows * tokens, vocabulary]`.
fn expected(folder: &Path, name: &str) -> (Vec<Vec<u32>>, Tensor) {
    let mut tensors = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    (ids, tensors.remove(name).unwrap().flatten(0, 1).unwrap())
}

/// Asserts that logits differ by no more than `tolerance` of the largest.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let difference = largest_difference(found, expected) / largest(expected);
    assert!(difference < tolerance, "{what}: {difference}");
}

/// Writes a base's weights and its config as a Hugging Face folder.
fn write_folder(file: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let shards = GgufShards::open(file).unwrap();
    fs::write(folder.join("config.json"), gguf_config_json(&shards).unwrap().to_string()).unwrap();
    let checkpoint = Checkpoint::of_gguf(shards).unwrap();
    checkpoint.write_edited(folder, &BTreeSet::new(), &mut |_, _| Ok(())).unwrap();
}

/// In F32 the logits are those of transformers, and so are those of the folder that is written again; quantized, they are
/// those of the folder with the dequantized weights.
fn check(folder: &Path) {
    let name = folder.display().to_string();
    let temporary = tempfile::tempdir().unwrap();
    let (file, again) = (temporary.path().join("b.gguf"), temporary.path().join("again"));
    let (ids, expected) = expected(folder, "base");
    GgufModel::of_folder(&folder.join("base"), Types::Whole).write(&file);
    let base = open(&file);
    assert_close(&name, &logits(&base, &ids), &expected, 1e-4);
    let original = Base::open(&folder.join("base"), &BaseOptions::default()).unwrap();
    assert_eq!(base.adaptable_modules(), original.adaptable_modules(), "{name}");
    assert_eq!(base.identity().dimensions, original.identity().dimensions, "{name}");
    original.identity().ensure_same(base.identity()).unwrap();
    write_folder(&file, &again);
    let written = Base::open(&again, &BaseOptions::default()).unwrap();
    assert_close(&format!("{name}, written"), &logits(&written, &ids), &expected, 1e-4);

    GgufModel::of_folder(&folder.join("base"), Types::Quantized).write(&file);
    let quantized = open(&file);
    write_folder(&file, &again);
    let dequantized = Base::open(&again, &BaseOptions::default()).unwrap();
    assert_close(&format!("{name}, quantized"), &logits(&quantized, &ids), &logits(&dequantized, &ids), 1e-5);
    assert!(quantized.weight_bytes() < dequantized.weight_bytes(), "{name}");
    assert_eq!(quantized.parameters(), dequantized.parameters(), "{name}");
}

#[test]
fn logits_of_every_architecture_are_those_of_its_folder() {
    FIXTURES.iter().for_each(|name| check(&fixture(name)));
}

#[test]
#[ignore = "needs ../shared"]
fn logits_of_larger_bases_are_those_of_their_folders() {
    SHARED.iter().for_each(|name| check(&shared("oracles").join(name)));
}

#[test]
fn the_config_is_that_of_the_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("b.gguf");
    for name in ["phi3", "gemma3"] {
        let folder = fixture(name).join("base");
        GgufModel::of_folder(&folder, Types::Whole).write(&file);
        let found = BaseConfig::of_gguf(&GgufShards::open(&file).unwrap()).unwrap();
        let own = BaseConfig::read(&folder).unwrap();
        let (attention, scales) = (own.attention.clone(), own.scales);
        assert_eq!(
            (found.descriptor, found.attention_of_layer.clone()),
            (own.descriptor, own.attention_of_layer.clone())
        );
        for (found, own) in found.attention.iter().zip(&attention) {
            assert_eq!(
                (found.window, found.rope.as_ref().map(|rope| rope.theta)),
                (own.window, own.rope.as_ref().map(|rope| rope.theta))
            );
        }
        assert_eq!(
            (found.epsilon, found.tied, found.max_positions),
            (own.epsilon, own.tied, own.max_positions),
            "{name}"
        );
        assert_eq!((found.scales.embedding, found.scales.logit_soft_cap), (scales.embedding, scales.logit_soft_cap));
    }
}

#[test]
fn every_number_of_rotated_features_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("b.gguf");
    for (head_dim, rotated) in [(100, 58), (44, 30), (46, 26), (128, 96)] {
        let mut model = GgufModel::of_folder(&fixture("phi3").join("base"), Types::Whole);
        model.metadata.retain(|(key, _)| !key.contains("rope.scaling"));
        model.tensors.retain(|written| !written.tensor.name.starts_with("rope_factors"));
        for (key, value) in [
            ("attention.key_length", head_dim),
            ("attention.value_length", head_dim),
            ("rope.dimension_count", rotated),
        ] {
            model.set(&format!("phi3.{key}"), GgufValue::U32(value));
        }
        model.write(&file);
        let config = BaseConfig::of_gguf(&GgufShards::open(&file).unwrap()).unwrap();
        assert_eq!(config.attention[0].rope.as_ref().unwrap().features, rotated as usize);
    }
}

#[test]
fn what_is_not_a_supported_model_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("b.gguf");
    let error = |change: &dyn Fn(&mut GgufModel)| {
        let mut model = GgufModel::of_folder(&fixture("llama").join("base"), Types::Whole);
        change(&mut model);
        model.write(&file);
        let error = Base::open_gguf(&file, &BaseOptions::default()).err().unwrap().to_string();
        assert!(error.contains("b.gguf: "), "{error}");
        error
    };
    let text = |text: &str| GgufValue::Text(text.to_owned());
    let contains = |change: &dyn Fn(&mut GgufModel), expected: &[&str]| {
        let error = error(change);
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    contains(
        &|model| model.set("general.architecture", text("mamba")),
        &["`general.architecture` is `mamba`", "llama, qwen2, qwen3, gemma2, gemma3, phi3"],
    );
    contains(&|model| model.set("llama.expert_count", GgufValue::U32(8)), &["`llama.expert_count` is 8"]);
    contains(
        &|model| model.metadata.retain(|(key, _)| key != "llama.block_count"),
        &["`llama.block_count` is missing"],
    );
    contains(
        &|model| model.set("llama.block_count", GgufValue::U32(u32::MAX)),
        &["`llama.block_count` is 4294967295, but there are"],
    );
    contains(
        &|model| model.set("llama.attention.head_count", text("four")),
        &["`llama.attention.head_count`", "expected a whole number"],
    );
    contains(
        &|model| {
            model.tensors.retain(|written| written.tensor.name != "rope_freqs.weight");
            model.set("llama.rope.dimension_count", GgufValue::U32(4));
        },
        &["`llama.rope.dimension_count` is 4, expected the 8"],
    );
    contains(
        &|model| model.tensors.retain(|written| written.tensor.name != "blk.1.attn_k.weight"),
        &["`model.layers.1.self_attn.k_proj.weight` is missing"],
    );
    contains(
        &|model| model.tensor("blk.0.ffn_up.weight").tensor.name = "blk.0.ffn_up_exps.weight".to_owned(),
        &["`blk.0.ffn_up_exps.weight` has no place"],
    );
    contains(
        &|model| model.tensor("blk.0.attn_q.weight").tensor.shape = vec![16, 64],
        &["`blk.0.attn_q.weight` has shape [16, 64]"],
    );
    contains(
        &|model| {
            let embedding = model.tensor("token_embd.weight");
            embedding.tensor.dtype = GgmlType::by_name("MXFP4").unwrap();
            embedding.bytes.truncate(embedding.tensor.bytes());
        },
        &["`token_embd.weight` is MXFP4; lorakit reads F32, F16, BF16, Q4_0"],
    );
}

#[test]
fn yarn_has_the_attention_factor_of_the_converted_config() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("b.gguf");
    let config = |keys: &[(&str, f32)]| {
        let mut model = GgufModel::of_folder(&fixture("qwen2").join("base"), Types::Whole);
        model.set("qwen2.rope.scaling.type", GgufValue::Text("yarn".to_owned()));
        keys.iter().for_each(|(key, value)| model.set(&format!("qwen2.rope.scaling.{key}"), GgufValue::F32(*value)));
        model.write(&file);
        BaseConfig::of_gguf(&GgufShards::open(&file).unwrap())
    };
    let own = 0.1 * 4f64.ln() + 1.0;
    for (keys, expected) in [
        (&[][..], own),
        (&[("yarn_attn_factor", 0.75)], 0.75),
        (&[("attn_factor", 0.5)], 0.5 * own),
        (&[("yarn_attn_factor", 0.75), ("attn_factor", 0.5), ("yarn_ext_factor", 1.0)], 0.375),
        (&[("yarn_ext_factor", -1.0)], own),
    ] {
        let config = config(&[&[("factor", 4.0)], keys].concat()).unwrap();
        let scaling = config.attention[0].rope.as_ref().unwrap().scaling.clone();
        let RopeScaling::Yarn { attention_factor, .. } = scaling else { panic!("{scaling:?}") };
        assert!((attention_factor - expected).abs() < 1e-12, "{keys:?}: {attention_factor}");
    }
    let error = config(&[("factor", 4.0), ("yarn_ext_factor", 0.0)]).unwrap_err().to_string();
    assert!(error.contains("`qwen2.rope.scaling.yarn_ext_factor` is 0; only 1 is supported"), "{error}");
}

/// Such a file is of an architecture that has all biases of attention or none.
#[test]
fn biases_of_queries_keys_and_values_alone_are_those_of_qwen_2() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, file) = (temporary.path().join("llama"), temporary.path().join("b.gguf"));
    let qwen = fixture("qwen2").join("base");
    fs::create_dir(&folder).unwrap();
    fs::copy(qwen.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(qwen.join("config.json")).unwrap();
    fs::write(folder.join("config.json"), config.replace(r#""model_type": "qwen2""#, r#""model_type": "llama""#))
        .unwrap();
    let mut model = GgufModel::of_folder(&folder, Types::Whole);
    // Other models than Qwen's have ids of special tokens that none of their tokens has.
    model.set("tokenizer.ggml.padding_token_id", GgufValue::U32(u32::MAX));
    model.write(&file);
    let (ids, expected) = expected(&fixture("qwen2"), "base");
    assert_close("llama with biases", &logits(&open(&file), &ids), &expected, 1e-4);
    let json = gguf_config_json(&GgufShards::open(&file).unwrap()).unwrap();
    assert_eq!((&json["model_type"], &json["pad_token_id"]), (&"qwen2".into(), &serde_json::Value::Null));
}

#[test]
fn values_that_are_not_supported_are_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("b.gguf");
    for (key, value, expected) in [
        ("llama.attention.head_count_kv", GgufValue::Array(Vec::new()), "is an empty list"),
        ("llama.attention.causal", GgufValue::Bool(false), "is false; lorakit has causal attention only"),
        ("llama.attention.causal", GgufValue::U32(1), "expected true or false"),
    ] {
        let mut model = GgufModel::of_folder(&fixture("llama").join("base"), Types::Whole);
        model.set(key, value);
        model.write(&file);
        let error = Base::open_gguf(&file, &BaseOptions::default()).err().unwrap().to_string();
        assert!(error.contains(&format!("`{key}` ")) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_fingerprint_is_that_of_the_weights_and_not_of_the_template() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("b.gguf");
    let identity = |change: &dyn Fn(&mut GgufModel)| {
        let mut model = GgufModel::of_folder(&fixture("llama").join("base"), Types::Quantized);
        change(&mut model);
        model.write(&file);
        open(&file).identity().clone()
    };
    let own = identity(&|_| {});
    assert_eq!(own.form.as_deref(), Some("GGUF Q8_0 F16 F32"));
    let renamed = identity(&|model| model.set("tokenizer.chat_template", GgufValue::Text("{{ x }}".to_owned())));
    assert_eq!(renamed.fingerprint, own.fingerprint);
    let changed = identity(&|model| model.tensor("blk.1.ffn_up.weight").bytes[40] ^= 1);
    assert_ne!(changed.fingerprint, own.fingerprint);
    changed.ensure_same(&own).unwrap();
}

#[test]
#[ignore = "needs ../shared"]
fn logits_of_every_block_type_are_those_of_its_dequantized_weights() {
    let folder = std::env::var_os("LORAKIT_GGUF_ORACLE").map_or_else(|| shared("oracles/gguf"), PathBuf::from);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gguf"));
    assert_eq!(files.len(), 14);
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let (ids, expected) = expected(&folder, name);
        assert_close(name, &logits(&open(&file), &ids), &expected, 2e-4);
    }
}
