//! Pretrains `pico`, the bundled base: a Mistral model with under a million parameters, from random weights.
//!
//! `cargo run --release -p lorakit-train --example pretrain_pico -- FOLDER [STEPS]` writes a Hugging Face model folder.
//! The text comes from `lorakit_task::skills::pretraining_rows`; everything is determined by [`SEED`].

#![allow(clippy::print_stderr)]

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use lorakit_format::atomic;
use lorakit_format::mmap::FileBytes;
use lorakit_model::{Base, BaseOptions};
use lorakit_task::{Example, Tokenizer, pico_tokenizer, pico_tokenizer_config, skills};
use lorakit_train::{Job, LrSchedulerType, Pass, PassContext, TrainConfig};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 0;
const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 344;
const LAYERS: usize = 4;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
/// Standard deviation of the initial weights.
const SPREAD: f64 = 0.05;
/// Rows per step.
const BATCH: usize = 32;
/// Default number of steps.
const STEPS: usize = 9000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: pretrain_pico FOLDER [STEPS]")?;
    let steps = arguments.next().map_or(Ok(STEPS), |steps| steps.parse())?;
    let tokenizer_json = pico_tokenizer();
    let tokenizer = Tokenizer::from_bytes(tokenizer_json.to_string().as_bytes(), "</s>")?;
    let config = config(tokenizer.size());

    let weights = FileBytes::Owned(random_weights(tokenizer.size())?.into());
    let base = Base::from_bytes(
        "pico",
        &config.to_string(),
        weights,
        &BaseOptions { trainable: true, ..BaseOptions::default() },
    )?;
    eprintln!("{} parameters, {steps} steps of {BATCH} rows", base.parameters());
    train(&base, &tokenizer, steps)?;

    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be created", folder.display()))?;
    atomic::write_file(&folder.join("model.safetensors"), &stored(&base)?)?;
    for (name, value) in [
        ("config.json", config),
        ("tokenizer.json", tokenizer_json),
        ("tokenizer_config.json", pico_tokenizer_config()),
    ] {
        atomic::write_file(&folder.join(name), format!("{value:#}\n").as_bytes())?;
    }
    Ok(())
}

fn config(vocabulary: usize) -> Value {
    json!({
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": HIDDEN / HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": SPREAD,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 256,
        "model_type": "mistral",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": null,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": vocabulary
    })
}

/// The shape of every tensor; norms are vectors.
fn shapes(vocabulary: usize) -> BTreeMap<String, Vec<usize>> {
    let head = HIDDEN / HEADS;
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_string(), vec![vocabulary, HIDDEN]),
        ("model.norm.weight".to_string(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HEADS * head, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * head, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * head, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * head]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    shapes
}

/// Ones for norms, N(0, SPREAD) for matrices, as the bytes of a safetensors file.
fn random_weights(vocabulary: usize) -> Result<Vec<u8>> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut tensors = Vec::new();
    for (name, shape) in shapes(vocabulary) {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = match shape.len() {
            1 => vec![1.0; count],
            _ => (0..count).map(|_| SPREAD as f32 * normal(&mut random)).collect(),
        };
        tensors.push((name, Tensor::from_vec(values, shape, &Device::Cpu)?));
    }
    Ok(safetensors::serialize(tensors.iter().map(|(name, tensor)| (name, tensor)), None)?)
}

/// A standard normal sample, by the Box-Muller transform.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let mut uniform = || (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0;
    let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), 2.0 * std::f64::consts::PI * uniform());
    (radius * angle.cos()) as f32
}

fn train(base: &Base, tokenizer: &Tokenizer, steps: usize) -> Result<()> {
    let rows = skills::pretraining_rows(SEED, steps * BATCH);
    let train = rows.iter().map(|row| Example::encode(row, tokenizer, 256)).collect::<lorakit_task::Result<_>>()?;
    let job = Job::new("pico", train);
    let settings = TrainConfig {
        batch_size: BATCH,
        max_steps: Some(steps),
        learning_rate: 3e-3,
        lr_scheduler: LrSchedulerType::Cosine,
        warmup_ratio: 0.02,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        dropout: 0.0,
        ..TrainConfig::default()
    };
    let mut pass = Pass::full(PassContext { base, config: &settings, seed: SEED, batch_tokens: 4096 }, &job)?;
    let start = Instant::now();
    while pass.steps_done() < steps {
        let step = pass.step()?.step;
        if step.is_multiple_of(100) || step == steps {
            let losses = &pass.progress()[0].losses;
            let last = &losses[losses.len().saturating_sub(100)..];
            let mean = last.iter().sum::<f32>() / last.len().max(1) as f32;
            eprintln!("step {step}: loss {mean:.4}, {:.0} s", start.elapsed().as_secs_f64());
        }
        if let Some(failure) = &pass.progress()[0].failure {
            anyhow::bail!("{failure}");
        }
    }
    Ok(())
}

/// The trained weights in bf16, as a safetensors file.
fn stored(base: &Base) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for (name, variable) in base.variables() {
        tensors.push((name.clone(), variable.as_tensor().detach().to_dtype(DType::BF16)?));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(tensors.iter().map(|(name, tensor)| (name, tensor)), Some(metadata))?)
}
