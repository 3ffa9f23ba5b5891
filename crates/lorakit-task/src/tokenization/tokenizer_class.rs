//! The tokenizer class that transformers 5 opens a model folder with.
//!
//! Most classes take `tokenizer.json` as it is. Some take only its vocabulary, merges and post-processor, and build the
//! rest themselves, by settings of `tokenizer_config.json` such as `add_prefix_space`. Their tokens differ from those of
//! the file where a text begins with a space or contains added tokens.

use serde_json::{Value, json};

/// The words of Qwen's tokenizers.
pub(crate) const QWEN_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A class that builds its pipeline itself, or all those that take it from the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenizerClass {
    /// `TokenizersBackend` and others.
    AsFile,
    Llama,
    /// `CodeGenTokenizer` builds the same.
    Gpt2,
    GptNeoX,
    Qwen2,
    Gemma,
    Cohere,
    T5,
}

/// The files of a model folder that decide how `tokenizer.json` is read, null where absent.
pub(crate) struct ClassSettings {
    /// `config.json`.
    pub(crate) config: Value,
    /// `tokenizer_config.json`.
    pub(crate) tokenizer: Value,
}

impl TokenizerClass {
    /// The class that `AutoTokenizer` chooses. The one that the folder names gives way to that of the architecture where
    /// transformers lists many repositories as naming a wrong one.
    pub(crate) fn of(settings: &ClassSettings, tokenizer_json: &[u8]) -> Self {
        let class = |value: &Value| Some(value["tokenizer_class"].as_str()?.trim_end_matches("Fast").to_owned());
        let named = class(&settings.tokenizer).or_else(|| class(&settings.config));
        let model_type = settings.config["model_type"].as_str().unwrap_or_default();
        let named_in_vain = matches!(model_type, "qwen2" | "phi3");
        let byte_level = || tokenizer_json.windows(11).any(|window| window == br#""ByteLevel""#);
        match (named.as_deref(), registered_tokenizer_class(model_type)) {
            (Some("LlamaTokenizer"), _) if !named_in_vain && byte_level() => Self::AsFile,
            (Some(named), Some(registered)) if named != registered => match registered {
                "TokenizersBackend" => Self::AsFile,
                registered => Self::by_name(if named_in_vain { registered } else { named }),
            },
            (Some(named), _) => Self::by_name(named),
            (None, Some(registered)) => Self::by_name(registered),
            (None, None) => Self::AsFile,
        }
    }

    fn by_name(name: &str) -> Self {
        match name {
            "LlamaTokenizer" => Self::Llama,
            "GPT2Tokenizer" | "CodeGenTokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "Qwen2Tokenizer" => Self::Qwen2,
            "GemmaTokenizer" => Self::Gemma,
            "CohereTokenizer" => Self::Cohere,
            "T5Tokenizer" => Self::T5,
            _ => Self::AsFile,
        }
    }

    /// The special tokens that the class has where `tokenizer_config.json` does not name others.
    pub(crate) fn default_tokens(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Self::AsFile => &[],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::Gpt2 => &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            Self::GptNeoX => {
                &[("bos_token", END), ("eos_token", END), ("unk_token", END), ("pad_token", "<|padding|>")]
            }
            Self::T5 => &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
            Self::Qwen2 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Cohere => &[
                ("bos_token", "<BOS_TOKEN>"),
                ("eos_token", "<|END_OF_TURN_TOKEN|>"),
                ("unk_token", "<UNK>"),
                ("sep_token", "<SEP>"),
                ("pad_token", "<PAD>"),
                ("cls_token", "<CLS>"),
                ("mask_token", "<MASK_TOKEN>"),
            ],
        }
    }

    /// Whether the class builds the pipeline of a `tokenizer.json` with this model itself: T5's class has a Unigram, the
    /// others a BPE.
    pub(crate) fn rebuilds(self, model: &Value) -> bool {
        let kind = model["type"].as_str().unwrap_or(if model["merges"].is_null() { "" } else { "BPE" });
        match self {
            Self::AsFile => false,
            Self::T5 => kind == "Unigram",
            _ => kind == "BPE",
        }
    }

    /// Replaces what the class builds itself in the JSON of a `tokenizer.json` that it [`rebuilds`](Self::rebuilds). Added
    /// tokens are removed: the class adds them again.
    pub(crate) fn rebuild(self, json: &mut Value, tokenizer_config: &Value) {
        if self == Self::T5 {
            return t5(json);
        }
        let prefix_space = tokenizer_config["add_prefix_space"].as_bool();
        let [normalizer, pre_tokenizer, decoder] = match self {
            Self::AsFile | Self::T5 => return,
            Self::Llama => llama(prefix_space.unwrap_or(true), tokenizer_config["legacy"].as_bool().unwrap_or(false)),
            Self::Gpt2 => [Value::Null, byte_level(prefix_space, true), byte_level(None, true)],
            Self::GptNeoX => [json!({"type": "NFC"}), byte_level(prefix_space, true), byte_level(None, true)],
            Self::Qwen2 => {
                let words =
                    json!({"type": "Split", "pattern": {"Regex": QWEN_WORDS}, "behavior": "Isolated", "invert": false});
                [json!({"type": "NFC"}), sequence(words, byte_level(prefix_space, false)), byte_level(None, true)]
            }
            Self::Gemma => [
                json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
                json!({"type": "Sequence", "decoders": piece_decoders()}),
            ],
            Self::Cohere => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                [json!({"type": "NFC"}), sequence(digits, byte_level(prefix_space, true)), byte_level(None, true)]
            }
        };
        let pieces = matches!(self, Self::Llama | Self::Gemma);
        json["normalizer"] = normalizer;
        json["pre_tokenizer"] = pre_tokenizer;
        json["decoder"] = decoder;
        json["added_tokens"] = json!([]);
        if self == Self::GptNeoX {
            json["post_processor"] = Value::Null;
        }
        let model = &mut json["model"];
        let affix = if pieces { Value::Null } else { json!("") };
        model["dropout"] = Value::Null;
        model["unk_token"] = if self == Self::Gemma { unknown(tokenizer_config) } else { Value::Null };
        model["continuing_subword_prefix"] = affix.clone();
        model["end_of_word_suffix"] = affix;
        model["fuse_unk"] = pieces.into();
        model["byte_fallback"] = pieces.into();
        model["ignore_merges"] = false.into();
    }
}

/// The class that transformers registers for an architecture; None where it registers none.
pub fn registered_tokenizer_class(model_type: &str) -> Option<&'static str> {
    match model_type {
        "phi" | "gpt2" | "starcoder2" => Some("GPT2Tokenizer"),
        "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => Some("Qwen2Tokenizer"),
        "gemma" | "gemma2" | "gemma3" | "gemma3_text" => Some("GemmaTokenizer"),
        "gpt_neox" | "olmo" | "olmoe" => Some("GPTNeoXTokenizer"),
        "cohere" | "cohere2" => Some("CohereTokenizer"),
        "t5" | "mt5" => Some("T5Tokenizer"),
        "mistral" | "mixtral" | "ministral" | "ministral3" | "mistral3" | "phi3" | "olmo2" | "olmo3" | "stablelm"
        | "granite" | "granitemoe" | "granitemoehybrid" | "granitemoeshared" => Some("TokenizersBackend"),
        _ => None,
    }
}

/// Makes a `tokenizer.json` T5's: SentencePiece's character map, words, and a space before each.
fn t5(json: &mut Value) {
    let normalizer = &json["normalizer"];
    let own = normalizer["normalizers"].as_array().cloned().unwrap_or_else(|| vec![normalizer.clone()]);
    let character_map = own.into_iter().find(|normalizer| normalizer["type"] == "Precompiled");
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json["normalizer"] = character_map.unwrap_or_default();
    json["pre_tokenizer"] = sequence(json!({"type": "WhitespaceSplit"}), metaspace.clone());
    json["decoder"] = metaspace;
    json["added_tokens"] = json!([]);
    json["model"]["unk_id"] = 2.into();
    json["model"]["byte_fallback"] = false.into();
}

/// The normalizer, pre-tokenizer and decoder of Llama's tokenizers.
pub(crate) fn llama(prefix_space: bool, legacy: bool) -> [Value; 3] {
    let scheme = match (prefix_space, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders = piece_decoders();
    if prefix_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    [
        Value::Null,
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}),
        json!({"type": "Sequence", "decoders": decoders}),
    ]
}

/// The decoders of SentencePiece's pieces.
pub(crate) fn piece_decoders() -> Vec<Value> {
    vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ]
}

/// GPT-2's bytes, and with `words` its words.
pub(crate) fn byte_level(prefix_space: Option<bool>, words: bool) -> Value {
    let prefix_space = prefix_space.unwrap_or(false);
    json!({"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": words})
}

fn sequence(first: Value, second: Value) -> Value {
    json!({"type": "Sequence", "pretokenizers": [first, second]})
}

/// The text of Gemma's unknown token.
fn unknown(tokenizer_config: &Value) -> Value {
    let token = &tokenizer_config["unk_token"];
    let text = token.as_str().or_else(|| token["content"].as_str());
    text.unwrap_or("<unk>").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By transformers 5.23's `AutoTokenizer`.
    #[test]
    fn the_class_is_that_of_transformers() {
        let class = |model_type: &str, named: Value, file: &str| {
            let settings = ClassSettings {
                config: json!({"model_type": model_type}),
                tokenizer: json!({"tokenizer_class": named}),
            };
            TokenizerClass::of(&settings, file.as_bytes())
        };
        assert_eq!(class("llama", json!("LlamaTokenizerFast"), "{}"), TokenizerClass::Llama);
        assert_eq!(class("llama", json!("LlamaTokenizer"), r#"{"type": "ByteLevel"}"#), TokenizerClass::AsFile);
        assert_eq!(class("llama", json!("PreTrainedTokenizerFast"), "{}"), TokenizerClass::AsFile);
        assert_eq!(class("llama", Value::Null, "{}"), TokenizerClass::AsFile);
        assert_eq!(class("mistral", json!("LlamaTokenizer"), "{}"), TokenizerClass::AsFile);
        assert_eq!(class("granitemoehybrid", json!("GPT2Tokenizer"), "{}"), TokenizerClass::AsFile);
        assert_eq!(class("phi", json!("CodeGenTokenizer"), "{}"), TokenizerClass::Gpt2);
        assert_eq!(class("phi", json!("LlamaTokenizer"), "{}"), TokenizerClass::Llama);
        assert_eq!(class("phi", Value::Null, "{}"), TokenizerClass::Gpt2);
        assert_eq!(class("phi3", json!("LlamaTokenizer"), "{}"), TokenizerClass::AsFile);
        assert_eq!(class("qwen2", json!("LlamaTokenizer"), "{}"), TokenizerClass::Qwen2);
        assert_eq!(class("qwen3", json!("PreTrainedTokenizerFast"), "{}"), TokenizerClass::AsFile);
        assert_eq!(class("t5", json!("T5Tokenizer"), "{}"), TokenizerClass::T5);
        assert_eq!(class("t5", Value::Null, "{}"), TokenizerClass::T5);
    }
}
