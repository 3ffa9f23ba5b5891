//! `rope_scaling` of a config.json, from the keys and the tensors of a GGUF file.

use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::rope_config::{RopeConfig, RopeScaling};
use crate::error::Result;
use crate::layer::rope::RopeFrequencies;
use serde_json::{Value, json};

/// The bounds of Llama 3.1's scaling and the positions of its pretraining, which its successors share. A file holds only the
/// divisors that follow from them.
const LLAMA3: [f64; 3] = [1.0, 4.0, 8192.0];

/// How far a divisor may be from that of [`LLAMA3`]: files hold what f32 arithmetic made of them.
const TOLERANCE: f64 = 1e-4;

/// `rope_scaling`, or null; `theta` is the base of the frequencies, `features` the rotated ones of a head.
///
/// # Errors
/// If the file asks for a scaling that is not supported.
pub(crate) fn rope_scaling(keys: &GgufKeys, theta: f64, features: usize) -> Result<Value> {
    let pairs = features / 2;
    if let Some(divisors) = keys.vector("rope_freqs.weight", pairs)? {
        let unscaled = RopeConfig { theta, features, scaling: RopeScaling::None };
        return Ok(of_divisors(&divisors, &unscaled, keys.required("context_length")?));
    }
    let vectors = [keys.vector("rope_factors_short.weight", pairs)?, keys.vector("rope_factors_long.weight", pairs)?];
    if let [Some(short), Some(long)] = vectors {
        let attention_factor = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        return Ok(json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "attention_factor": attention_factor }));
    }
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    match (keys.text("rope.scaling.type")?, factor) {
        (None, Some(factor)) | (Some("linear"), Some(factor)) if factor != 1.0 => {
            Ok(json!({ "rope_type": "linear", "factor": factor }))
        }
        (Some("yarn"), Some(factor)) => yarn(keys, factor),
        (None | Some("none" | "linear"), _) => Ok(Value::Null),
        (Some(other), _) => {
            let reason =
                format!("is `{other}`; supported are none, linear, yarn with its factor, and longrope with its");
            Err(keys.error("rope.scaling.type", &format!("{reason} tensors")))
        }
    }
}

/// Yarn's parameters, as far as they differ from the defaults.
fn yarn(keys: &GgufKeys, factor: f64) -> Result<Value> {
    let mut scaling = json!({ "rope_type": "yarn", "factor": factor });
    if let Some(original) = keys.count("rope.scaling.original_context_length")? {
        scaling["original_max_position_embeddings"] = original.into();
    }
    for key in ["beta_fast", "beta_slow"] {
        if let Some(bound) = keys.number(&format!("rope.scaling.yarn_{key}"))? {
            scaling[key] = bound.into();
        }
    }
    // Below zero, llama.cpp takes its default, 1.
    if let Some(share) = keys.number("rope.scaling.yarn_ext_factor")?.filter(|&share| share >= 0.0 && share != 1.0) {
        return Err(keys.error("rope.scaling.yarn_ext_factor", &format!("is {share}; only 1 is supported")));
    }
    // llama.cpp's converter writes the factor of a config.json under the first name; by the second llama.cpp multiplies.
    let factor_of_config = keys.number("rope.scaling.yarn_attn_factor")?;
    let multiplier = keys.number("rope.scaling.attn_factor")?.filter(|&multiplier| multiplier != 1.0);
    if factor_of_config.is_some() || multiplier.is_some() {
        let own = factor_of_config.unwrap_or_else(|| 0.1 * factor.max(1.0).ln() + 1.0);
        scaling["attention_factor"] = (multiplier.unwrap_or(1.0) * own).into();
    }
    Ok(scaling)
}

/// The scaling that divides each frequency by its divisor: Llama 3's where it is that, else one of the divisors themselves.
fn of_divisors(divisors: &[f64], unscaled: &RopeConfig, positions: usize) -> Value {
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let [low, high, original] = LLAMA3;
    let scaled = RopeConfig { scaling: RopeScaling::Llama3 { factor, low, high, original }, ..unscaled.clone() };
    let [plain, scaled] = [unscaled, &scaled].map(|rope| RopeFrequencies::new(rope).inv_freq().to_vec());
    let expected = plain.iter().zip(&scaled).map(|(plain, scaled)| f64::from(plain / scaled));
    if divisors.iter().zip(expected).all(|(divisor, expected)| (divisor / expected - 1.0).abs() < TOLERANCE) {
        return json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original as u64 });
    }
    json!({ "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0,
        "original_max_position_embeddings": positions })
}
