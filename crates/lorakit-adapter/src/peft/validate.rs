//! The judgement of every key of an adapter_config.json: read, ignored with a notice, or refused by
//! name.

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::warning::Warning;

/// Keys that describe training or bookkeeping only: an adapter means the same whatever they say.
const WITHOUT_EFFECT: &[&str] =
    &["auto_mapping", "inference_mode", "megatron_core", "merge_weights", "peft_version", "qalora_group_size"];

/// Keys that tell how training was set up: ignored, with a notice where they say anything.
const TRAINING_ONLY: &[(&str, &str)] = &[
    ("corda_config", "it only shapes the start of training"),
    ("eva_config", "it only shapes the start of training"),
    ("loftq_config", "it only shapes the start of training"),
    ("lora_ga_config", "it only shapes the start of training"),
    ("runtime_config", "it belongs to one process and is never meant to be saved"),
    ("velora_config", "it only saves memory in training"),
];

/// Keys that, when set, make the adapter more than `s B A`, and what to do about each.
const BEYOND_LORA: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "aLoRA switches on at certain tokens; train a plain LoRA"),
    ("arrow_config", "it makes PEFT route among adapters; add the experts themselves and use the router `arrow`"),
    (
        "enable_lora",
        "a merged linear of PEFT < 0.3 that adapts only parts of a projection; re-save it with a \
         newer PEFT",
    ),
    ("ensure_weight_tying", "it ties adapters of embedding and head; train with ensure_weight_tying false"),
    ("kasa_config", "KaSA adds a trained diagonal between A and B; train a plain LoRA"),
    ("layer_replication", "it repeats layers of the base; save the enlarged base and adapt that"),
    ("lora_bias", "lora_B carries a bias, which is no low-rank update; train with lora_bias false"),
    ("megatron_config", "a Megatron base has other modules; convert the adapter to its Hugging Face base"),
    ("modules_to_save", "it holds full copies of modules beside the LoRA; train with modules_to_save null"),
    ("monteclora_config", "MonteCLoRA draws its weights at random; train a plain LoRA"),
    ("target_parameters", "it adapts bare parameters (of experts in a mixture); target modules instead"),
    ("trainable_token_indices", "it retrains embeddings of single tokens; train without it"),
    ("use_bdlora", "BD-LoRA is block-diagonal; train a plain LoRA"),
    (
        "use_dora",
        "DoRA rescales the base's weights by a magnitude vector; train with use_dora false, or \
         merge it into its base",
    ),
    ("use_qalora", "QA-LoRA pools the input before A; train a plain LoRA"),
];

/// One key's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnsupportedKey {
    /// The key, or `adapter_config.json` where the file as a whole is meant.
    pub key: String,
    /// What was found, what was expected, and what to do.
    pub reason: String,
}

/// A configuration that is not accepted: every reason at once, so that one reading suffices to mend
/// it.
#[derive(Clone, Debug, Error)]
#[error("not a plain LoRA configuration: {}", join_reasons(.refusals))]
pub struct UnsupportedConfig {
    /// The reasons, at least one.
    pub refusals: Vec<UnsupportedKey>,
}

fn join_reasons(refusals: &[UnsupportedKey]) -> String {
    let lines: Vec<_> = refusals.iter().map(|refusal| format!("{}: {}", refusal.key, refusal.reason)).collect();
    lines.join("; ")
}

impl UnsupportedConfig {
    pub(crate) fn of(key: &str, reason: impl Into<String>) -> Self {
        Self { refusals: vec![UnsupportedKey { key: key.to_owned(), reason: reason.into() }] }
    }
}

/// The keys still to be judged, and what was found about the others.
pub(crate) struct Validator {
    keys: Map<String, Value>,
    refusals: Vec<UnsupportedKey>,
    warnings: Vec<Warning>,
}

impl Validator {
    pub(crate) fn new(keys: Map<String, Value>) -> Self {
        Self { keys, refusals: Vec::new(), warnings: Vec::new() }
    }

    /// Takes the value of `key`, unless it is absent or null, which PEFT treats alike.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.shift_remove(key).filter(|value| !value.is_null())
    }

    /// Takes `key` as what `read` makes of it; refuses it as not `expected` where `read` makes
    /// nothing of it.
    pub(crate) fn take_as<T>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(key)?;
        let read = read(&value);
        if read.is_none() {
            self.refuse(key, format!("found {}; expected {expected}", shortened(&value)));
        }
        read
    }

    pub(crate) fn refuse(&mut self, key: &str, reason: impl Into<String>) {
        self.refusals.push(UnsupportedKey { key: key.to_owned(), reason: reason.into() });
    }

    pub(crate) fn warn(&mut self, key: &str, text: impl Into<String>) {
        self.warnings.push(Warning::new(key, text));
    }

    /// Records the error as a refusal of `key`.
    pub(crate) fn accept<T>(&mut self, key: &str, outcome: anyhow::Result<T>) -> Option<T> {
        outcome.map_err(|error| self.refuse(key, format!("{error:#}"))).ok()
    }

    /// Judges the keys that nobody took, by the tables above; what they do not know is ignored, as
    /// PEFT does.
    pub(crate) fn validate_rest(&mut self) {
        for (key, value) in std::mem::take(&mut self.keys) {
            if let Some((_, reason)) = BEYOND_LORA.iter().find(|(name, _)| *name == key) {
                if is_set(&value) {
                    self.refuse(&key, format!("found {}; {reason}", shortened(&value)));
                }
            } else if let Some((_, reason)) = TRAINING_ONLY.iter().find(|(name, _)| *name == key) {
                if is_set(&value) {
                    self.warn(&key, format!("ignored: {reason}"));
                }
            } else if !WITHOUT_EFFECT.contains(&key.as_str()) {
                self.warn(&key, "ignored: PEFT 0.21 knows no such key and ignores it as well");
            }
        }
    }

    /// The notices, or the refusals if there is any.
    pub(crate) fn finish(self) -> Result<Vec<Warning>, UnsupportedConfig> {
        if self.refusals.is_empty() { Ok(self.warnings) } else { Err(UnsupportedConfig { refusals: self.refusals }) }
    }
}

/// Whether a value asks for something: not null, not false, not empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

/// The value as JSON, cut where it would drown the message.
fn shortened(value: &Value) -> String {
    const LENGTH: usize = 120;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
