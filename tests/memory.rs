//! Estimates of memory against what a process then uses, on a random base of ten million parameters.
//! `scripts/memory_check.py` does the same over larger ones.
#![allow(clippy::unwrap_used)]

mod binary;

use binary::{run, words};
use candle_core::{Device, Tensor, safetensors};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const HIDDEN: usize = 256;
const INNER: usize = 1024;
const LAYERS: usize = 8;

/// How far an estimate may be off, as a share of what was used.
const SLACK: f64 = 0.15;

/// Writes a random Llama with pico's tokenizer.
fn write_base(folder: &Path) {
    words(&format!("base write --out {}", folder.display())).ok();
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(HIDDEN)),
        ("intermediate_size", json!(INNER)),
        ("num_hidden_layers", json!(LAYERS)),
        ("num_attention_heads", json!(4)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(64)),
        ("tie_word_embeddings", json!(true)),
    ] {
        config[key] = value;
    }
    fs::write(&path, config.to_string()).unwrap();
    let matrix = |rows: usize, columns: usize| Tensor::randn(0f32, 0.02, (rows, columns), &Device::Cpu).unwrap();
    let norm = || Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), matrix(vocabulary, HIDDEN)),
        ("model.norm.weight".to_owned(), norm()),
    ]);
    for layer in 0..LAYERS {
        for (name, tensor) in [
            ("self_attn.q_proj", matrix(HIDDEN, HIDDEN)),
            ("self_attn.k_proj", matrix(HIDDEN / 2, HIDDEN)),
            ("self_attn.v_proj", matrix(HIDDEN / 2, HIDDEN)),
            ("self_attn.o_proj", matrix(HIDDEN, HIDDEN)),
            ("mlp.gate_proj", matrix(INNER, HIDDEN)),
            ("mlp.up_proj", matrix(INNER, HIDDEN)),
            ("mlp.down_proj", matrix(HIDDEN, INNER)),
            ("input_layernorm", norm()),
            ("post_attention_layernorm", norm()),
        ] {
            tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        }
    }
    safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

/// The estimate and the largest resident set of training in a process of its own, in bytes.
fn train(base: &Path, library: &Path, settings: &str) -> (f64, f64) {
    let (base, library) = (base.display().to_string(), library.display().to_string());
    let tasks =
        ["suite:skills/shift_up1", "suite:skills/join_dash", "suite:skills/order_reverse", "suite:skills/order_left"];
    let fixed = ["train-experts", "--json", "-q", "--base", &base, "--library", &library, "--set", "max_steps=2"];
    let common = ["batch_size=64", "experts_per_pass=4", "eval_steps=0"];
    let words = fixed.into_iter().chain(common).chain(settings.split_whitespace()).chain(["--tasks"]).chain(tasks);
    let document = run(words).json();
    let estimate =
        document["memory"]["estimate"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
    (estimate, document["memory"]["peak"].as_f64().unwrap())
}

#[test]
#[cfg(target_os = "linux")]
fn estimates_are_near_to_what_training_uses() {
    let work = tempfile::tempdir().unwrap();
    let base = work.path().join("base");
    write_base(&base);
    let (mut estimated, mut used) = (Vec::new(), Vec::new());
    for (index, settings) in
        ["", "dropout=0 target_modules=all-linear rank=16", "gradient_checkpointing=true"].into_iter().enumerate()
    {
        // Beside other programs a process may hold more at once: the smaller of two runs.
        let [(estimate, first), (_, second)] =
            ["a", "b"].map(|run| train(&base, &work.path().join(format!("{index}{run}")), settings));
        let peak = first.min(second);
        assert!((estimate / peak - 1.0).abs() < SLACK, "{settings}: {estimate} estimated, {peak} used");
        estimated.push(estimate);
        used.push(peak);
    }
    // On two cores 44 % by the estimates, and 42 % as measured: a quarter is the process and the base, which stay.
    let saved = |bytes: &[f64]| 1.0 - bytes[2] / bytes[0];
    let expected = (saved(&estimated) - 0.07).max(0.3);
    assert!(saved(&used) > expected, "checkpointing must save memory: {estimated:?}, {used:?}");
}
