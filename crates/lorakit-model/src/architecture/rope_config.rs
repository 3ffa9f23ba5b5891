//! The rotary embedding of a base, from `rope_parameters` (transformers 5), or `rope_scaling` with flat keys (before).

use crate::architecture::config_keys::ConfigKeys;
use crate::error::Result;
use serde_json::Value;

/// How rotary frequencies are scaled to reach positions beyond those of the pretraining.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base of the frequencies grows with rows longer than those of the pretraining.
    Dynamic {
        /// How fast.
        factor: f64,
        /// Number of positions of the pretraining.
        original: f64,
    },
    /// Low frequencies are divided by a factor, high ones kept, those between interpolated (Llama 3.1).
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
    /// The same with bounds in rotations over the pretraining's positions, and larger scores (Peng et al. 2023,
    /// <https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// The factor for low frequencies.
        factor: f64,
        /// Frequencies of more rotations are kept.
        fast: f64,
        /// Frequencies of fewer rotations are divided by the factor.
        slow: f64,
        /// Number of positions of the pretraining.
        original: f64,
        /// What rotated queries and keys are multiplied with.
        attention_factor: f64,
        /// Whether the bounds are rounded to whole frequencies.
        truncate: bool,
    },
    /// Each frequency has a divisor of its own, and another one in rows longer than those of the pretraining (Ding et al.
    /// 2024, <https://arxiv.org/abs/2402.13753>).
    LongRope {
        /// The divisors in rows of at most `original` tokens.
        short: Vec<f64>,
        /// The divisors in longer rows.
        long: Vec<f64>,
        /// Number of positions of the pretraining.
        original: f64,
        /// What rotated queries and keys are multiplied with.
        attention_factor: f64,
    },
}

/// The rotary embedding of a base.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of a head's features that are rotated.
    pub features: usize,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
}

/// The fraction of a head's features that is rotated.
pub(crate) enum RotaryFactor {
    /// All of them.
    Whole,
    /// `partial_rotary_factor`, with its default.
    Partial(f64),
}

/// The number of positions of the pretraining.
const ORIGINAL_POSITIONS: &str = "original_max_position_embeddings";

/// The kinds of scaling for which a file may have that number beside the rotary parameters.
const SCALED_FROM_ORIGINAL: [&str; 4] = ["llama3", "yarn", "longrope", "su"];

impl RopeConfig {
    /// Reads the rotary embedding of all layers.
    pub(crate) fn from_json(json: &ConfigKeys, factor: RotaryFactor, head_dim: usize) -> Result<Self> {
        Self::from_parameters(json, &Self::parameters(json)?, factor, head_dim)
    }

    /// The rotary parameters of all layers. Where both styles are in one file, transformers 5 reads `rope_scaling` and the
    /// flat keys; and the length of the pretraining beside the parameters takes precedence over one among them.
    pub(crate) fn parameters(json: &ConfigKeys) -> Result<ConfigKeys> {
        let parameters = match json.nested("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
            Some(scaling) => scaling,
            None => json.nested_or_empty("rope_parameters")?,
        };
        Ok(match json.count(ORIGINAL_POSITIONS)? {
            Some(original) if SCALED_FROM_ORIGINAL.contains(&RopeScaling::kind(&parameters)?) => {
                parameters.with_value(ORIGINAL_POSITIONS, original)
            }
            _ => parameters,
        })
    }

    /// What to say where both styles are in one file.
    pub(crate) fn warning(json: &ConfigKeys) -> Result<Option<String>> {
        let is_set = |key| -> Result<bool> { Ok(!json.nested_or_empty(key)?.is_empty()) };
        Ok((is_set("rope_scaling")? && is_set("rope_parameters")?).then(|| {
            json.message(
                "keys `rope_scaling` and `rope_parameters` are both there; `rope_scaling` and `rope_theta` are used, as in \
                 transformers 5",
            )
        }))
    }

    /// Reads `parameters`; what they lack is in `json`, the file.
    pub(crate) fn from_parameters(
        json: &ConfigKeys,
        parameters: &ConfigKeys,
        factor: RotaryFactor,
        head_dim: usize,
    ) -> Result<Self> {
        let number = |key, default| parameters.number(key, json.number(key, default)?);
        let theta = number("rope_theta", 10_000.0)?;
        let factor = match factor {
            RotaryFactor::Whole => 1.0,
            RotaryFactor::Partial(default) => number("partial_rotary_factor", default)?,
        };
        let features = (head_dim as f64 * factor) as usize;
        if features < 2 || !features.is_multiple_of(2) || features > head_dim {
            return Err(json.error(format!(
                "{features} of the {head_dim} features of a head are rotated; expected an even number"
            )));
        }
        let positions = json.count("max_position_embeddings")?.unwrap_or(2048) as f64;
        let scaling = RopeScaling::from_json(parameters, positions, features / 2)?;
        match scaling {
            // Its bounds divide by the logarithm of theta; the other's factor divides by that of the positions.
            RopeScaling::Yarn { .. } if theta == 1.0 => Err(json.error("rope_theta 1 cannot be scaled by yarn")),
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. }
                if !attention_factor.is_finite() =>
            {
                Err(json.error(format!("the attention factor of the rope scaling is {attention_factor}")))
            }
            scaling => Ok(Self { theta, features, scaling }),
        }
    }
}

impl RopeScaling {
    /// The kind of scaling that rotary parameters ask for.
    pub(crate) fn kind(parameters: &ConfigKeys) -> Result<&str> {
        Ok(match parameters.text("rope_type")? {
            Some(kind) => kind,
            None => parameters.text("type")?.unwrap_or("default"),
        })
    }

    /// `positions` are those of the file's `max_position_embeddings`, `pairs` the number of frequencies.
    fn from_json(json: &ConfigKeys, positions: f64, pairs: usize) -> Result<Self> {
        let factor = || match json.get("factor").and_then(Value::as_f64) {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(json.error("rope scaling needs a `factor` above zero")),
        };
        let original = json.number(ORIGINAL_POSITIONS, positions)?;
        match Self::kind(json)? {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "dynamic" => Ok(Self::Dynamic { factor: factor()?, original: positions }),
            "llama3" => Ok(Self::Llama3 {
                factor: factor()?,
                low: json.number("low_freq_factor", 1.0)?,
                high: json.number("high_freq_factor", 4.0)?,
                original,
            }),
            "yarn" => {
                let factor = if json.get("factor").is_some() { factor()? } else { positions / original };
                Ok(Self::Yarn {
                    factor,
                    fast: json.number("beta_fast", 32.0)?,
                    slow: json.number("beta_slow", 1.0)?,
                    original,
                    attention_factor: json.number("attention_factor", yarn_attention_factor(json, factor)?)?,
                    truncate: json.flag("truncate", true)?,
                })
            }
            "longrope" | "su" => {
                let factor = json.number("factor", positions / original)?;
                let larger = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                Ok(Self::LongRope {
                    short: json.divisors("short_factor", pairs)?,
                    long: json.divisors("long_factor", pairs)?,
                    original,
                    attention_factor: json.number("attention_factor", larger)?,
                })
            }
            other => Err(json.error(format!(
                "rope scaling is `{other}`; supported are default, linear, dynamic, llama3, yarn and longrope"
            ))),
        }
    }
}

/// Yarn's attention factor where the file has none.
fn yarn_attention_factor(json: &ConfigKeys, factor: f64) -> Result<f64> {
    let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    // As in transformers, zero is as if it were not there.
    let scale = |key| match json.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(None),
        _ => json.number_or_null(key, None),
    };
    Ok(match (scale("mscale")?, scale("mscale_all_dim")?) {
        (Some(scale), Some(all)) => of(scale) / of(all),
        _ => of(1.0),
    })
}
