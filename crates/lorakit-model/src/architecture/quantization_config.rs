//! `quantization_config` of a config.json: which quantized weights can be read.

use crate::architecture::config_keys::ConfigKeys;
use crate::error::Result;

/// The key.
pub const QUANTIZATION_CONFIG: &str = "quantization_config";

/// Refuses weights in other forms than the 4 bits of bitsandbytes, whose details are beside each weight.
///
/// # Errors
/// If the method is another one; the error names it.
pub(crate) fn ensure_readable(json: &ConfigKeys) -> Result<()> {
    let Some(quantization) = json.nested(QUANTIZATION_CONFIG)? else { return Ok(()) };
    let [four_bits, eight_bits] = ["load_in_4bit", "load_in_8bit"].map(|key| quantization.flag(key, false));
    let (four_bits, eight_bits) = (four_bits?, eight_bits?);
    let method = match quantization.text("quant_method")? {
        Some(method) => method,
        None if four_bits || eight_bits => "bitsandbytes",
        None => "none",
    };
    let kind = quantization.text("bnb_4bit_quant_type")?.unwrap_or("nf4");
    match method {
        "bitsandbytes" if four_bits && ["nf4", "fp4"].contains(&kind) => Ok(()),
        "bitsandbytes" => {
            let found = match (eight_bits, four_bits) {
                (true, _) => "bitsandbytes' int8".to_owned(),
                (false, true) => format!("bitsandbytes' 4 bits of type `{kind}`"),
                (false, false) => "bitsandbytes with neither load_in_4bit nor load_in_8bit".to_owned(),
            };
            Err(json.error(format!(
                "key `{QUANTIZATION_CONFIG}`: {found}; lorakit reads its nf4 and fp4, GGUF files, \
                 and unquantized weights"
            )))
        }
        method => Err(json.error(format!(
            "key `{QUANTIZATION_CONFIG}`: the method `{method}` is not supported; lorakit reads bitsandbytes' nf4 and fp4, \
             GGUF files, and unquantized weights"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn check(config: Value) -> std::result::Result<(), String> {
        let keys = ConfigKeys::parse(&json!({ QUANTIZATION_CONFIG: config }).to_string(), "config.json").unwrap();
        ensure_readable(&keys).map_err(|error| error.to_string())
    }

    #[test]
    fn other_quantizations_are_refused_by_name() {
        let nf4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
        assert_eq!(check(nf4), Ok(()));
        assert_eq!(check(json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"})), Ok(()));
        assert_eq!(check(Value::Null), Ok(()));
        let int8 = check(json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false}));
        assert!(int8.unwrap_err().contains("config.json: key `quantization_config`: bitsandbytes' int8"));
        let neither = check(json!({"quant_method": "bitsandbytes", "load_in_8bit": false, "load_in_4bit": false}));
        let neither = neither.unwrap_err();
        assert!(
            neither.contains("with neither load_in_4bit nor load_in_8bit") && !neither.contains("`nf4`"),
            "{neither}"
        );
        for method in ["gptq", "awq", "fp8", "hqq", "compressed-tensors", "mxfp4"] {
            assert!(check(json!({ "quant_method": method })).unwrap_err().contains(&format!("method `{method}`")));
        }
        assert!(check(json!({})).unwrap_err().contains("`none`"));
    }
}
