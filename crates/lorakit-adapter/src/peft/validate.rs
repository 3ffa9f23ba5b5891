//! Accounts for every key of an adapter_config.json: it is read, ignored with a warning, or refused by name.

use serde_json::{Map, Value};

use crate::error::AdapterError;
use crate::peft::unsupported::{UnsupportedConfig, UnsupportedKey};
use crate::warning::Warning;

/// Keys about training or bookkeeping only: they do not change what an adapter computes.
const WITHOUT_EFFECT: &[&str] =
    &["auto_mapping", "inference_mode", "megatron_core", "merge_weights", "peft_version", "qalora_group_size"];

/// Keys about the setup of training: ignored, with a warning if they are set.
const TRAINING_ONLY: &[(&str, &str)] = &[
    ("corda_config", "it only affects initialization"),
    ("eva_config", "it only affects initialization"),
    ("loftq_config", "it only affects initialization"),
    ("lora_ga_config", "it only affects initialization"),
    ("runtime_config", "it belongs to one process and is never meant to be saved"),
    ("velora_config", "it only saves memory in training"),
];

/// Keys that make the adapter more than `s B A` if they are set, and what to do about each.
pub(crate) const BEYOND_LORA: &[(&str, &str)] = &[
    (
        "alora_invocation_tokens",
        "an aLoRA acts only after its invocation tokens, and here an adapter acts on every token; train a plain LoRA",
    ),
    ("arrow_config", "it makes PEFT route among adapters; add the experts themselves and use the router `arrow`"),
    (
        "enable_lora",
        "a merged linear of PEFT < 0.3 that adapts only parts of a projection; re-save it with a \
         newer PEFT",
    ),
    ("kasa_config", "KaSA adds a trained diagonal between A and B; train a plain LoRA"),
    ("layer_replication", "it repeats layers of the base; save the enlarged base and adapt that"),
    ("megatron_config", "a Megatron base has other modules; convert the adapter to its Hugging Face base"),
    (
        "modules_to_save",
        "it holds full copies of modules besides the LoRA; those of linear modules and of the embedding (embed_tokens), but \
         not those of norms, become low-rank by `library add --base B --convert svd:rank=R`",
    ),
    ("monteclora_config", "MonteCLoRA draws its weights at random; train a plain LoRA"),
    ("target_parameters", "it adapts bare parameters (of experts in a mixture); target modules instead"),
    (
        "trainable_token_indices",
        "it replaces the embeddings of single tokens; make that low-rank, without loss where R is at least their number, by \
         `library add --base B --convert svd:rank=R`",
    ),
    ("use_bdlora", "BD-LoRA is block-diagonal; train a plain LoRA"),
    (
        "use_dora",
        "DoRA rescales the base's weights by a magnitude vector; make it low-rank by \
         `library add --base B --convert svd:rank=R`",
    ),
    ("use_qalora", "QA-LoRA pools the input before A; train a plain LoRA"),
];

/// The keys not yet accounted for, and what was found about the others.
pub(crate) struct Validator {
    keys: Map<String, Value>,
    unsupported: Vec<UnsupportedKey>,
    warnings: Vec<Warning>,
}

impl Validator {
    pub(crate) fn new(keys: Map<String, Value>) -> Self {
        Self { keys, unsupported: Vec::new(), warnings: Vec::new() }
    }

    /// Takes the value of `key`, unless it is absent or null, which PEFT treats alike.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.shift_remove(key).filter(|value| !value.is_null())
    }

    /// Whether `key`, which is not yet taken, sets something.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(is_set)
    }

    /// Takes the value of `key` as converted by `read`; refuses it as not `expected` where `read` returns nothing.
    pub(crate) fn take_as<T>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(key)?;
        let read = read(&value);
        if read.is_none() {
            self.refuse(key, format!("found {}; expected {expected}", shortened(&value)));
        }
        read
    }

    /// Refuses `key`.
    pub(crate) fn refuse(&mut self, key: &str, reason: impl Into<String>) {
        self.unsupported.push(UnsupportedKey { key: key.to_owned(), reason: reason.into() });
    }

    /// Warns about `key`.
    pub(crate) fn warn(&mut self, key: &str, text: impl Into<String>) {
        self.warnings.push(Warning::new(key, text));
    }

    /// Refuses `key` where its value led to an error.
    pub(crate) fn accept<T>(&mut self, key: &str, outcome: Result<T, AdapterError>) -> Option<T> {
        outcome.map_err(|error| self.refuse(key, error.chain())).ok()
    }

    /// Accounts for the keys that were not taken, by the tables above; unknown ones are ignored, as PEFT ignores them.
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

    /// The warnings, or the unsupported keys if there are any.
    pub(crate) fn finish(self) -> Result<Vec<Warning>, UnsupportedConfig> {
        if self.unsupported.is_empty() { Ok(self.warnings) } else { Err(UnsupportedConfig { keys: self.unsupported }) }
    }
}

/// Whether a value sets something: it is not null, false or empty.
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

/// The value as JSON, truncated so that it does not drown the message.
fn shortened(value: &Value) -> String {
    const LENGTH: usize = 120;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
