//! The closed list of what an adapter is refused for.

use crate::peft::validate::BEYOND_LORA;

/// Refusals that are no key of [`BEYOND_LORA`].
const OTHERS: &[(&str, &str)] = &[
    ("peft_type", "anything but LORA: the other methods of PEFT are no low-rank updates s B A"),
    (
        "bias",
        "all and lora_only, where the file holds biases other than zero or, with --base, the base's: they are no low-rank update",
    ),
    ("lora_bias", "where the file holds biases of lora_B other than zero: they are no low-rank update"),
    ("init_lora_weights", "pissa, olora, corda, loftq and lora_ga also change the base's weights"),
    ("values", "keys whose value is of another kind than PEFT takes, such as a rank that is a text"),
    ("tensors", "convolutions, and tensors of other methods than LoRA or of the base that differ from the base's"),
    (
        "incomplete",
        "one of lora_A and lora_B without the other, a module of the base that is targeted without tensors, or, where DoRA and \
         modules_to_save are converted, a module without its magnitude or copy",
    ),
    ("shapes", "ranks other than r and rank_pattern say, and modules that the base lacks or has in other dimensions"),
    ("numbers", "NaN, infinity, and types other than F32, F16, BF16 and F64"),
    ("several", "several adapters in one file; save each on its own"),
    ("unselected", "a configuration that selects none of the modules with tensors"),
];

/// Every feature for which an adapter is refused, by the key of adapter_config.json or a word for what is in the weights,
/// with the reason. Everything else that PEFT loads is accepted, with a warning where a key has no effect.
pub fn refused_features() -> Vec<(&'static str, &'static str)> {
    let mut features: Vec<_> = BEYOND_LORA.to_vec();
    features.sort();
    features.extend_from_slice(OTHERS);
    features
}
