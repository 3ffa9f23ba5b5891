//! Writes a base of a Hugging Face folder as GGUF, in the way of llama.cpp's converter: names, order of rows, and keys.
#![allow(dead_code, reason = "every test file uses a part of this")]

use candle_core::{Device, Tensor, safetensors};
use half::f16;
use lorakit_format::gguf::{GgmlType, GgufHeader, GgufTensor, GgufValue, write_file};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The modules of a layer with llama.cpp's names; those of Gemma's norms differ.
const PARTS: [(&str, &str); 17] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// A tensor with its values in the file.
#[derive(Clone)]
pub struct Written {
    pub tensor: GgufTensor,
    pub bytes: Vec<u8>,
}

impl Written {
    /// Keeps the first `columns` columns of a matrix in F16, as Q8_0.
    pub fn quantize_columns(&mut self, columns: usize) {
        let values: Vec<f32> =
            self.bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect();
        let rows = values.chunks_exact(self.tensor.shape[1]);
        self.bytes = rows.flat_map(|row| row[..columns].chunks_exact(32)).flat_map(q8_0).collect();
        self.tensor.shape[1] = columns;
        self.tensor.dtype = GgmlType::by_name("Q8_0").unwrap();
    }
}

/// A model in GGUF before it is written.
pub struct GgufModel {
    pub metadata: Vec<(String, GgufValue)>,
    pub tensors: Vec<Written>,
}

/// The type that a tensor's values are written in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Types {
    /// All in F32.
    Whole,
    /// Matrices in Q8_0, or in F16 where their rows are not of whole blocks.
    Quantized,
}

impl GgufModel {
    /// Converts the base in `folder`.
    pub fn of_folder(folder: &Path, types: Types) -> Self {
        let config: Value = serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let tensors: BTreeMap<String, Tensor> =
            safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap().into_iter().collect();
        let mut model = Self { metadata: metadata(&config), tensors: Vec::new() };
        for (name, tensor) in &tensors {
            let (shape, values) = (tensor.dims().to_vec(), converted(&config, name, tensor));
            model.push(&llama_cpp_name(&config, name), shape, &values, types);
        }
        for (name, divisors) in rope_divisors(&config) {
            model.push(name, vec![divisors.len()], &divisors, Types::Whole);
        }
        model
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, values: &[f32], types: Types) {
        let is_matrix = shape.len() == 2 && types == Types::Quantized;
        let (dtype, bytes) = match (is_matrix, shape.last().unwrap().is_multiple_of(32)) {
            (true, true) => (GgmlType::by_name("Q8_0").unwrap(), values.chunks(32).flat_map(q8_0).collect()),
            (true, false) => {
                (GgmlType::F16, values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
            }
            (false, _) => (GgmlType::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        };
        self.tensors.push(Written { tensor: GgufTensor { name: name.to_owned(), shape, dtype }, bytes });
    }

    /// Replaces the value of a key, or adds the key.
    pub fn set(&mut self, key: &str, value: GgufValue) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_owned(), value));
    }

    /// The tensor of that name.
    pub fn tensor(&mut self, name: &str) -> &mut Written {
        self.tensors.iter_mut().find(|written| written.tensor.name == name).unwrap()
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        let tensors = self.tensors.iter().map(|written| written.tensor.clone()).collect();
        let header = GgufHeader { metadata: self.metadata.clone(), tensors };
        let mut bytes = self.tensors.iter().map(|written| written.bytes.clone());
        write_file(path, &header, |_| bytes.next().unwrap()).unwrap();
    }
}

fn model_type(config: &Value) -> &str {
    config["model_type"].as_str().unwrap()
}

fn is_gemma(config: &Value) -> bool {
    model_type(config).starts_with("gemma")
}

/// `general.architecture`.
fn architecture(config: &Value) -> &str {
    match model_type(config) {
        "mistral" => "llama",
        "gemma3_text" => "gemma3",
        other => other,
    }
}

fn llama_cpp_name(config: &Value, name: &str) -> String {
    let (module, suffix) = name.rsplit_once('.').unwrap();
    if module == "model.embed_tokens" {
        return "token_embd.weight".to_owned();
    }
    let (layer, part) = match module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (format!("blk.{layer}."), part),
        None => (String::new(), module),
    };
    let own = match part {
        "post_attention_layernorm" if is_gemma(config) => "post_attention_norm",
        part => PARTS.iter().find(|(module, _)| *module == part).unwrap().1,
    };
    format!("{layer}{own}.{suffix}")
}

/// The values of a tensor as the converter writes them.
fn converted(config: &Value, name: &str, tensor: &Tensor) -> Vec<f32> {
    let values: Vec<f32> = tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    if is_gemma(config) && name.ends_with("norm.weight") {
        return values.iter().map(|value| value + 1.0).collect();
    }
    let is_rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
    if !is_rotated || architecture(config) != "llama" {
        return values;
    }
    let (rows, half) = (tensor.dims()[0], head_dim(config) / 2);
    let width = values.len() / rows;
    let of_row = |row: usize| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        let from = head * 2 * half + within % 2 * half + within / 2;
        values[from * width..(from + 1) * width].to_vec()
    };
    (0..rows).flat_map(of_row).collect()
}

fn head_dim(config: &Value) -> usize {
    let number = |key: &str| config[key].as_u64();
    number("head_dim").unwrap_or_else(|| number("hidden_size").unwrap() / number("num_attention_heads").unwrap())
        as usize
}

/// The rotary parameters of all layers, or of global ones.
fn rope(config: &Value) -> &Value {
    let parameters = &config["rope_parameters"];
    if parameters["full_attention"].is_object() { &parameters["full_attention"] } else { parameters }
}

fn metadata(config: &Value) -> Vec<(String, GgufValue)> {
    let architecture = architecture(config);
    let mut metadata = vec![("general.architecture".to_owned(), GgufValue::Text(architecture.to_owned()))];
    let mut add = |key: &str, value: GgufValue| metadata.push((format!("{architecture}.{key}"), value));
    for (key, own) in [
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("attention.sliding_window", "sliding_window"),
    ] {
        let value = config[own].as_u64().map(|number| GgufValue::U32(number as u32));
        value.into_iter().for_each(|value| add(key, value));
    }
    let number = |value: &Value| value.as_f64().map(|number| GgufValue::F32(number as f32));
    let rope = rope(config);
    let partial = config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
    add("rope.dimension_count", GgufValue::U32((head_dim(config) as f64 * partial) as u32));
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", &config["rms_norm_eps"]),
        ("rope.freq_base", &rope["rope_theta"]),
        ("attn_logit_softcapping", &config["attn_logit_softcapping"]),
        ("final_logit_softcapping", &config["final_logit_softcapping"]),
    ] {
        number(value).into_iter().for_each(|value| add(key, value));
    }
    // The converter leaves this one to llama.cpp, which knows the released models.
    let scalar = config["query_pre_attn_scalar"].as_f64();
    scalar.into_iter().for_each(|scalar| add("attention.scale", GgufValue::F32(scalar.powf(-0.5) as f32)));
    let local = config["layer_types"].as_array().filter(|_| architecture == "gemma3");
    let is_local = |kinds: &Vec<Value>| kinds.iter().map(|kind| GgufValue::Bool(kind == "sliding_attention")).collect();
    local.into_iter().for_each(|kinds| add("attention.sliding_window_pattern", GgufValue::Array(is_local(kinds))));
    let scaling = rope["rope_type"].as_str().unwrap_or("default");
    if ["linear", "yarn", "longrope"].contains(&scaling) {
        add("rope.scaling.type", GgufValue::Text(scaling.to_owned()));
        number(&rope["factor"]).into_iter().for_each(|factor| add("rope.scaling.factor", factor));
        let original = rope["original_max_position_embeddings"].as_u64();
        let original = original.map(|original| GgufValue::U32(original as u32));
        original.into_iter().for_each(|original| add("rope.scaling.original_context_length", original));
    }
    if scaling == "longrope" {
        add("rope.scaling.attn_factor", GgufValue::F32(longrope_attention_factor(config) as f32));
    }
    metadata
}

fn longrope_attention_factor(config: &Value) -> f64 {
    let original = rope(config)["original_max_position_embeddings"].as_f64().unwrap();
    let scale = config["max_position_embeddings"].as_f64().unwrap() / original;
    if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 }
}

/// The tensors of rotary divisors.
fn rope_divisors(config: &Value) -> Vec<(&'static str, Vec<f32>)> {
    let rope = rope(config);
    let list = |key: &str| rope[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect();
    match rope["rope_type"].as_str() {
        Some("llama3") => vec![("rope_freqs.weight", llama3_divisors(config))],
        Some("longrope") => {
            vec![("rope_factors_long.weight", list("long_factor")), ("rope_factors_short.weight", list("short_factor"))]
        }
        _ => Vec::new(),
    }
}

fn llama3_divisors(config: &Value) -> Vec<f32> {
    let rope = rope(config);
    let number = |key: &str| rope[key].as_f64().unwrap();
    let (factor, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
    let (original, theta, features) =
        (number("original_max_position_embeddings"), number("rope_theta"), head_dim(config));
    let divisor = |pair: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / features as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..features / 2).map(|pair| divisor(pair) as f32).collect()
}

/// A block of Q8_0.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let scale = values.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = f16::from_f32(scale).to_le_bytes().to_vec();
    block.extend(values.iter().map(|value| (value * inverse).round() as i8 as u8));
    block
}
