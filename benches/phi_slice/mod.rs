//! The model that benches run on: a slice of Phi-2 at full width with random weights, and experts for it.
//!
//! By default two layers on the CPU. Benches that call `subject` read the environment: `BENCH_DEVICE=cuda` runs on a
//! GPU, `BENCH_LAYERS` sets the number of layers (up to Phi-2's 32), `BENCH_BASE` names a model folder to use instead,
//! and `BENCH_ROWS` and `BENCH_TOKENS` set the number and length of rows.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use candle_core::{DType, Device};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::CounterRng;
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::{Base, BaseOptions};
use lorakit_route::{Expert, LibraryStack, RouterContext, parse_router};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Phi-2's hidden and MLP widths.
const HIDDEN: usize = 2560;
const INNER: usize = 10240;

/// Disables candle's own thread pool, which spins while it waits, as the program does.
pub fn one_candle_thread() {
    // SAFETY: benches call this before anything else reads the environment.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
}

/// Pseudo-random numbers.
pub struct Noise(CounterRng);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(CounterRng::seeded(seed, 0))
    }

    /// Uniform in [-1, 1).
    pub fn value(&mut self) -> f32 {
        2.0 * self.0.uniform() - 1.0
    }

    pub fn values(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| size * self.value()).collect()
    }

    /// Random tokens below `vocabulary`.
    pub fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count).map(|_| self.0.below_u32(vocabulary as u32)).collect()
    }
}

/// A number from an environment variable, or its default.
pub fn set(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().expect(variable))
}

/// The device that `BENCH_DEVICE` names.
pub fn device() -> Device {
    match std::env::var("BENCH_DEVICE").as_deref() {
        // One stream for all threads, as in the binary.
        Ok("cuda") => Device::new_cuda_with_stream(0).unwrap(),
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok(other) => panic!("BENCH_DEVICE={other}: expected cpu or cuda"),
    }
}

/// The base that the environment selects, with weights of `dtype`.
pub fn subject(vocabulary: usize, dtype: DType) -> Base {
    let options = BaseOptions { device: device(), dtype: Some(dtype), ..BaseOptions::default() };
    match std::env::var("BENCH_BASE") {
        Ok(folder) => Base::open(Path::new(&folder), &options).unwrap(),
        Err(_) => base(set("BENCH_LAYERS", 2), vocabulary, &options),
    }
}

/// The slice, with an embedding and a head of `vocabulary` rows. It is written to a folder below `target/` on first use
/// and opened from there.
pub fn base(layers: usize, vocabulary: usize, options: &BaseOptions) -> Base {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("phi-slice-{layers}-{vocabulary}"));
    if !folder.join("config.json").exists() {
        write_base(&folder, layers, vocabulary);
    }
    Base::open(&folder, options).unwrap()
}

fn write_base(folder: &Path, layers: usize, vocabulary: usize) {
    fs::create_dir_all(folder).unwrap();
    let tensors = tensors(layers, vocabulary);
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in &tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header
            .insert(name.clone(), serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut noise = Noise::new(0);
    for (name, shape) in &tensors {
        let around = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        for _ in 0..shape.iter().product::<usize>() {
            file.write_all(&(around + 0.035 * noise.value()).to_le_bytes()).unwrap();
        }
    }
    file.flush().unwrap();
    let config = serde_json::json!({
        "model_type": "phi", "architectures": ["PhiForCausalLM"], "hidden_act": "gelu_new", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.4, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "vocab_size": vocabulary, "tie_word_embeddings": false, "qk_layernorm": false,
    });
    // Written last: a folder without it is incomplete.
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn tensors(layers: usize, vocabulary: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, HIDDEN])];
    for layer in 0..layers {
        for (module, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN, HIDDEN),
            ("self_attn.v_proj", HIDDEN, HIDDEN),
            ("self_attn.dense", HIDDEN, HIDDEN),
            ("mlp.fc1", INNER, HIDDEN),
            ("mlp.fc2", HIDDEN, INNER),
        ] {
            tensors.push((format!("model.layers.{layer}.{module}.weight"), vec![rows, columns]));
            tensors.push((format!("model.layers.{layer}.{module}.bias"), vec![rows]));
        }
        for part in ["weight", "bias"] {
            tensors.push((format!("model.layers.{layer}.input_layernorm.{part}"), vec![HIDDEN]));
        }
    }
    for part in ["weight", "bias"] {
        tensors.push((format!("model.final_layernorm.{part}"), vec![HIDDEN]));
    }
    tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, HIDDEN]));
    tensors.push(("lm_head.bias".to_owned(), vec![vocabulary]));
    tensors
}

/// An adapter of rank 4 on q, k, v and dense, as the paper trains them.
pub fn adapter(base: &Base, noise: &mut Noise) -> Adapter {
    const RANK: usize = 4;
    let modules = base.modules().into_iter().filter(|module| module.path.contains("self_attn"));
    let pair = |input: usize, output: usize, noise: &mut Noise| {
        let a = Matrix::new(RANK, input, noise.values(RANK * input, 1.0 / (input as f32).sqrt())).unwrap();
        let b = Matrix::new(output, RANK, noise.values(RANK * output, 0.03)).unwrap();
        LowRank::new(a, b, 4.0).unwrap()
    };
    Adapter::new(modules.map(|module| (module.path, pair(module.input, module.output, noise))).collect())
}

/// `count` experts with different values.
pub fn experts(base: &Base, count: usize) -> LibraryStack {
    let experts = (0..count).map(|e| Expert::new(format!("e{e:03}"), adapter(base, &mut Noise::new(e as u64 + 1))));
    LibraryStack::new(experts, &base.adaptable_sites(), base.device()).unwrap()
}

/// The patches of a router given by its text.
pub fn patches(router: &str, experts: &LibraryStack) -> Patches {
    parse_router(router).unwrap().patches(experts, &RouterContext::default()).unwrap()
}

/// Computes the hidden states of one row, and waits for the device.
pub fn prefill(base: &Base, ids: &[u32], patches: &Patches) {
    base.hidden_states(ids, &base.plan(SequenceBatch::packed([ids.len()])), patches).unwrap();
    base.device().synchronize().unwrap();
}

/// An empty folder for a bench.
pub fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    folder
}
