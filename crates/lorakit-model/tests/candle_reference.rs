//! The bases against candle-transformers, an implementation that shares no line with ours, on weights drawn here: what a
//! clone without any other material can check.
//!
//! A sliding window is left out: candle-transformers lets a token see one key more than transformers does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{mistral, phi};
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::{Base, BaseOptions};
use serde_json::{Value, json};
use std::path::Path;

const VOCABULARY: usize = 61;
const TOKENS: usize = 19;

fn ids() -> Vec<u32> {
    (0..TOKENS).map(|i| ((i * i * 7 + 3) % VOCABULARY) as u32).collect()
}

/// Gives every variable values that differ from each other and from every other variable's; norms stay near one.
fn fill(variables: &VarMap) {
    let data = variables.data().lock().unwrap();
    let mut names: Vec<&String> = data.keys().collect();
    names.sort();
    for (index, name) in names.into_iter().enumerate() {
        let variable = &data[name];
        let (center, spread) = if name.contains("norm") && name.ends_with("weight") { (1.0, 0.2) } else { (0.0, 0.15) };
        let wave = |i: usize| center + spread * ((i as f32 + 1.0) * 12.9898 + index as f32 * 78.233).sin();
        let values: Vec<f32> = (0..variable.elem_count()).map(wave).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

/// Compares what follows every prefix: candle-transformers gives the logits of the last token alone.
fn assert_same(folder: &Path, variables: &VarMap, config: &Value, reference: impl Fn(&Tensor) -> Tensor) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    variables.save(folder.join("model.safetensors")).unwrap();
    let base = Base::open(folder, &BaseOptions::default()).unwrap();
    let ours = base.logits(&ids(), SequenceBatch::packed([TOKENS]), &Patches::none()).unwrap();
    let spread =
        ours.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().fold(0.0, |m: f32, x| m.max(x.abs()));
    assert!(spread > 0.5, "logits up to {spread} are too small to tell anything");
    for length in 1..=TOKENS {
        let prefix = Tensor::new(&ids()[..length], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = reference(&prefix).flatten_all().unwrap();
        let difference = (ours.get(length - 1).unwrap() - theirs).unwrap().abs().unwrap().max(0).unwrap();
        let difference: f32 = difference.to_scalar().unwrap();
        assert!(difference < 1e-4, "after {length} tokens: {difference}");
    }
}

#[test]
fn mistral_equals_candle_transformers() {
    let config = json!({
        "model_type": "mistral", "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "sliding_window": null,
        "tie_word_embeddings": false,
    });
    let theirs: mistral::Config = serde_json::from_value(config.clone()).unwrap();
    let variables = VarMap::new();
    let builder = || VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    mistral::Model::new(&theirs, builder()).unwrap();
    fill(&variables);
    let folder = tempfile::tempdir().unwrap();
    assert_same(folder.path(), &variables, &config, |ids| {
        mistral::Model::new(&theirs, builder()).unwrap().forward(ids, 0).unwrap()
    });
}

#[test]
fn phi_equals_candle_transformers() {
    let config = json!({
        "model_type": "phi", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_act": "gelu_new",
        "max_position_embeddings": 64, "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "qk_layernorm": false, "tie_word_embeddings": false,
    });
    let theirs: phi::Config = serde_json::from_value(config.clone()).unwrap();
    let variables = VarMap::new();
    let builder = || VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    phi::Model::new(&theirs, builder()).unwrap();
    fill(&variables);
    let folder = tempfile::tempdir().unwrap();
    assert_same(folder.path(), &variables, &config, |ids| {
        phi::Model::new(&theirs, builder()).unwrap().forward(ids).unwrap()
    });
}
