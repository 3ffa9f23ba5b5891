//! Errors of model folders name the file, the key or tensor, what was expected and what was found.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, safetensors};
use lorakit_model::{Base, BaseOptions, Checkpoint, ModelError, StorageDtype};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft/mistral/base")
}

/// The error of opening the fixture after `edit` has changed its config.
fn with_config(edit: impl FnOnce(&mut Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::from_slice(&fs::read(fixture().join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(fixture().join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let Err(error) = Base::open(folder.path(), &BaseOptions::default()) else { panic!("the base was opened") };
    error.to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn a_config_is_refused_by_file_and_key() {
    let set = |key: &'static str, value: Value| with_config(|config| config[key] = value);
    assert_says(
        &set("model_type", json!("mamba")),
        &["config.json", "`model_type` is `mamba`", "mistral, mistral3, ministral, ministral3, llama, phi, qwen2"],
    );
    for (model_type, part) in [
        ("qwen3_moe", "mixtures of experts"),
        ("qwen3_next", "linear attention"),
        ("qwen2_5_vl", "images"),
        ("phi3small", "block-sparse attention"),
    ] {
        assert_says(&set("model_type", json!(model_type)), &[model_type, part, "supported are mistral"]);
    }
    assert_says(&set("num_local_experts", json!(8)), &["`num_local_experts`", "mixtures of experts"]);
    assert_says(&set("model_type", Value::Null), &["config.json", "`model_type` is missing"]);
    assert_says(&set("vocab_size", Value::Null), &["config.json", "`vocab_size` is missing"]);
    assert_says(&set("vocab_size", json!(-1)), &["`vocab_size` is -1", "a whole number above zero"]);
    let many = 1u64 << 32;
    assert_says(&set("max_position_embeddings", json!(many)), &["is 4294967296", "above zero and below 2^32"]);
    assert_says(&set("hidden_act", json!("gelu")), &["`hidden_act` is `gelu`", "silu"]);
    assert_says(&set("num_key_value_heads", json!(3)), &["num_attention_heads 4", "num_key_value_heads 3"]);
    assert_says(&set("quantization_config", json!({"quant_method": "gptq"})), &["quantization_config", "`gptq`"]);
    assert_says(&set("rope_parameters", json!({"rope_type": "axial"})), &["`axial`", "default, linear, dynamic"]);
    let long = json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": 2});
    assert_says(&set("rope_parameters", long), &["`short_factor` is a list of 1", "expected 6 numbers"]);
}

#[test]
fn weights_are_refused_by_file_and_tensor() {
    let set = |key: &'static str, value: Value| with_config(|config| config[key] = value);
    assert_says(&set("vocab_size", json!(33)), &["model.safetensors", "`model.embed_tokens.weight`", "[33, 32]"]);
    assert_says(&set("num_hidden_layers", json!(60_000)), &["60000 layers, but there are 20 tensors"]);
    assert_says(&set("num_hidden_layers", json!(4_000_000_000u32)), &["config.json", "4000000000; expected at most"]);
    assert_says(&set("num_hidden_layers", json!(9)), &["model.layers.2.", "is missing"]);
    assert_says(&set("num_hidden_layers", json!(1)), &["model.safetensors", "`model.layers.1.", "different models"]);
}

#[test]
fn a_folder_without_weights_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Base::open(folder.path(), &BaseOptions::default()).err().unwrap();
    let missing = open();
    assert!(matches!(missing, ModelError::NoConfig { .. }));
    let chain = [missing.to_string(), std::error::Error::source(&missing).unwrap().to_string()].concat();
    assert_eq!(chain.matches(folder.path().to_str().unwrap()).count(), 1, "the file is named once: {chain}");
    fs::copy(fixture().join("config.json"), folder.path().join("config.json")).unwrap();
    assert_says(&open().to_string(), &["neither model.safetensors nor model.safetensors.index.json"]);
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
    assert_says(&open().to_string(), &["model.safetensors.index.json", "`weight_map` names no file"]);
    fs::remove_file(&index).unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert_says(&open().to_string(), &["pickles", "save the model with safetensors"]);
    fs::write(folder.path().join("model.safetensors"), "cut").unwrap();
    assert_says(&open().to_string(), &["model.safetensors", "not a complete safetensors file"]);
}

#[test]
fn a_wrapped_model_is_refused_by_the_prefix_of_its_wrapper() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture().join("config.json"), folder.path().join("config.json")).unwrap();
    let tensors = safetensors::load(fixture().join("model.safetensors"), &Device::Cpu).unwrap();
    for (prefix, meaning) in
        [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel"), ("base_model.model.", "a PEFT model")]
    {
        let wrapped: HashMap<String, Tensor> =
            tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        safetensors::save(&wrapped, folder.path().join("model.safetensors")).unwrap();
        let error = Base::open(folder.path(), &BaseOptions::default()).err().unwrap();
        assert_says(&error.to_string(), &["model.safetensors", &format!("starts with `{prefix}`"), meaning]);
    }
}

/// Weights in f32 of which one is beyond f16.
#[test]
fn a_base_is_not_rounded_to_a_type_that_makes_a_weight_infinite() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = safetensors::load(fixture().join("model.safetensors"), &Device::Cpu).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let (rows, columns) = tensors[name].dims2().unwrap();
    let values = (0..rows * columns).map(|at| if at == 70 { 1e5f32 } else { 0.1 }).collect();
    tensors.insert(name.to_owned(), Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap());
    safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    fs::copy(fixture().join("config.json"), folder.path().join("config.json")).unwrap();
    let open = |dtype| Base::open(folder.path(), &BaseOptions { dtype: Some(dtype), ..BaseOptions::default() });
    let message = open(DType::F16).err().unwrap().to_string();
    assert_says(&message, &["model.safetensors", name, "beyond the range of f16", "choose bf16 or f32"]);
    assert!(open(DType::BF16).is_ok() && open(DType::F32).is_ok());
}

/// Editing in memory gives the same values as writing and reopening, and changes nothing else.
#[test]
fn an_edited_checkpoint_equals_the_written_one() {
    let name = "model.layers.0.self_attn.q_proj.weight".to_owned();
    let names = BTreeSet::from([name.clone()]);
    let open = || Checkpoint::open(&fixture()).unwrap();
    let shape = [48, 32];
    let double = |_: &str, values: &mut [f32]| {
        values.iter_mut().for_each(|value| *value *= 2.0);
        Ok(())
    };
    let folder = tempfile::tempdir().unwrap();
    let rounding = open().write_edited(folder.path(), &names, &mut { double }).unwrap();
    assert_eq!(rounding.squared, 0.0, "a doubled value needs no rounding");
    let written = Checkpoint::open(folder.path()).unwrap();
    let edited = open().with_edits(&names, None, false, &mut { double }).unwrap();
    let own = open();
    let [written_values, edited_values, own_values] =
        [&written, &edited, &own].map(|checkpoint| checkpoint.get(&name, &shape).unwrap().values().into_owned());
    assert_eq!(written_values, edited_values);
    assert_eq!(written_values, own_values.iter().map(|value| value * 2.0).collect::<Vec<f32>>());
    let other = |checkpoint: &Checkpoint| checkpoint.get("model.norm.weight", &[32]).unwrap().values().into_owned();
    assert_eq!(other(&written), other(&own));
    assert_eq!(own.narrowest_dtype(&names).unwrap(), StorageDtype::F32);

    let others = BTreeSet::from(["model.layers.0.self_attn.o_proj.weight".to_owned()]);
    edited.write_edited(folder.path(), &others, &mut { double }).unwrap();
    let both = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(both.get(&name, &shape).unwrap().values(), edited_values, "an edit in memory is written too");

    let infinite = open().with_edits(&names, None, false, &mut |_, values| {
        values[0] = f32::INFINITY;
        Ok(())
    });
    assert!(matches!(infinite, Err(ModelError::NotFinite { .. })));
    let failed = open().with_edits(&names, None, false, &mut |_, _| Err("no".into()));
    assert!(matches!(failed, Err(ModelError::Edit { source, .. }) if source.to_string() == "no"));
}
