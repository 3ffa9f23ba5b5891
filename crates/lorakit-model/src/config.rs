//! config.json of a base, in the style of transformers 5 and in the older one.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;

/// The two forms of base that lorakit knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Mistral 7B and, the same form, Llama 1 to 3.
    Mistral,
    /// Phi-1, 1.5 and 2.
    Phi,
}

/// How positions are stretched beyond those of the pretraining.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies are divided by a factor, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` count as low frequencies.
        low: f64,
        /// Wavelengths below `original / high` count as high frequencies.
        high: f64,
        /// Number of positions of the pretraining.
        original: f64,
    },
}

/// The rotary embedding of a base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of a head's features that are rotated.
    pub features: usize,
    /// How positions are stretched.
    pub scaling: RopeScaling,
}

/// The dimensions and constants of a base.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which of our two model files reads it.
    pub form: Form,
    /// `model_type` as the file has it.
    pub model_type: String,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width within the MLP.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// The epsilon of the norms.
    pub epsilon: f64,
    /// The rotary embedding.
    pub rope: Rope,
    /// How many positions back a query sees, itself included.
    pub window: Option<usize>,
    /// Whether the head's weight is the embedding's.
    pub tied: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// The longest sequence that the base was made for.
    pub max_positions: usize,
}

/// A reader of one JSON object that names the file and the key in its errors.
struct Keys<'a> {
    object: &'a Value,
    file: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n > 0 && n < 1 << 32 => Ok(Some(n as usize)),
            _ => bail!("{}: key '{key}' is {value}, expected a whole number above zero", self.file),
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.with_context(|| format!("{}: key '{key}' is missing", self.file))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => bail!("{}: key '{key}' is {value}, expected a number above zero", self.file),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .with_context(|| format!("{}: key '{key}' is {value}, expected true or false", self.file)),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Refuses a key whose value says something other than `usual`.
    fn refuse_unless(&self, key: &str, usual: &[&str]) -> Result<()> {
        match self.text(key) {
            Some(value) if !usual.contains(&value) => {
                bail!("{}: key '{key}' is '{value}'; lorakit has {} only", self.file, usual.join(", "))
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Reads `config.json` of a model folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("{}: a base is a Hugging Face model folder, and this has no readable config.json", path.display())
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the text of a `config.json`; `file` is named in errors.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let object: Value = serde_json::from_str(text).with_context(|| format!("{file}: not valid JSON"))?;
        let keys = Keys { object: &object, file };
        let model_type =
            keys.text("model_type").with_context(|| format!("{file}: key 'model_type' is missing"))?.to_string();
        let form = match model_type.as_str() {
            "mistral" | "llama" => Form::Mistral,
            "phi" => Form::Phi,
            other => bail!("{file}: key 'model_type' is '{other}'; lorakit knows mistral, llama and phi"),
        };
        ensure!(
            keys.get("quantization_config").is_none(),
            "{file}: key 'quantization_config': quantised bases are not supported; use the unquantised weights"
        );
        let (hidden, heads) = (keys.required("hidden_size")?, keys.required("num_attention_heads")?);
        let kv_heads = keys.count("num_key_value_heads")?.unwrap_or(heads);
        ensure!(
            heads.is_multiple_of(kv_heads),
            "{file}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        );
        let head_dim = match (form, keys.count("head_dim")?) {
            (Form::Mistral, Some(features)) => features,
            _ => {
                ensure!(
                    hidden.is_multiple_of(heads),
                    "{file}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
                );
                hidden / heads
            }
        };
        match form {
            Form::Mistral => keys.refuse_unless("hidden_act", &["silu"])?,
            Form::Phi => keys.refuse_unless("hidden_act", &["gelu_new"])?,
        }
        ensure!(!keys.flag("qk_layernorm", false)?, "{file}: key 'qk_layernorm' is true, which lorakit does not have");
        Ok(Self {
            form,
            vocabulary: keys.required("vocab_size")?,
            hidden,
            intermediate: keys.required("intermediate_size")?,
            layers: keys.required("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            epsilon: match form {
                Form::Mistral => keys.number("rms_norm_eps", 1e-6)?,
                Form::Phi => keys.number("layer_norm_eps", 1e-5)?,
            },
            rope: rope(&keys, form, head_dim)?,
            window: window(&keys, &model_type)?,
            tied: keys.flag("tie_word_embeddings", false)?,
            attention_bias: form == Form::Phi || keys.flag("attention_bias", false)?,
            mlp_bias: form == Form::Phi || keys.flag("mlp_bias", false)?,
            max_positions: keys.count("max_position_embeddings")?.unwrap_or(2048),
            model_type,
        })
    }
}

/// The sliding window. MistralConfig's default, where the key is absent, is 4096; null means none.
fn window(keys: &Keys, model_type: &str) -> Result<Option<usize>> {
    match (model_type, keys.object.get("sliding_window")) {
        ("mistral", None) => Ok(Some(4096)),
        ("mistral", _) => keys.count("sliding_window"),
        _ => Ok(None),
    }
}

/// The rotary embedding, from `rope_parameters` (transformers 5) or the flat keys and `rope_scaling` (before).
fn rope(keys: &Keys, form: Form, head_dim: usize) -> Result<Rope> {
    let parameters = keys.get("rope_parameters");
    let nested = Keys { object: parameters.unwrap_or(keys.object), file: keys.file };
    let theta = nested.number("rope_theta", keys.number("rope_theta", 10_000.0)?)?;
    let share = match form {
        Form::Mistral => 1.0,
        Form::Phi => nested.number("partial_rotary_factor", keys.number("partial_rotary_factor", 0.5)?)?,
    };
    let features = (head_dim as f64 * share) as usize;
    ensure!(
        features >= 2 && features.is_multiple_of(2) && features <= head_dim,
        "{}: {features} of {head_dim} features of a head are rotated; expected an even number",
        keys.file
    );
    let scaling = match parameters.or_else(|| keys.get("rope_scaling")) {
        None => RopeScaling::None,
        Some(object) => rope_scaling(&Keys { object, file: keys.file })?,
    };
    Ok(Rope { theta, features, scaling })
}

fn rope_scaling(keys: &Keys) -> Result<RopeScaling> {
    let factor = || match keys.get("factor").and_then(Value::as_f64) {
        Some(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => bail!("{}: rope scaling needs a 'factor' above zero", keys.file),
    };
    match keys.text("rope_type").or_else(|| keys.text("type")).unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low: keys.number("low_freq_factor", 1.0)?,
            high: keys.number("high_freq_factor", 4.0)?,
            original: keys.number("original_max_position_embeddings", 8192.0)?,
        }),
        other => bail!("{}: rope scaling of type '{other}'; lorakit has default, linear and llama3", keys.file),
    }
}
