//! How byte-level tokenizers divide a text into words before they merge bytes, by the names that llama.cpp gives their
//! pre-tokenizers (`tokenizer.ggml.pre`).

use serde_json::{Value, json};

use crate::error::{Result, TaskError};
use crate::tokenization::tokenizer_class::{QWEN_WORDS, byte_level};

/// What a file that has no tokenizer of its own, or an unknown one, can be used with.
pub(crate) const OWN_TOKENIZER: &str = "give the model's own tokenizer with --tokenizer";

/// A way to divide texts into words, as the `tokenizer.json` of the models with it does.
#[derive(Debug)]
pub(crate) struct ByteLevelPreTokenizer {
    /// The names in GGUF files.
    names: &'static [&'static str],
    /// What each match of these patterns, one after the other, separates from its surroundings.
    patterns: &'static [&'static str],
    /// Whether GPT-2's words follow.
    gpt2: bool,
    /// Whether characters are composed first.
    pub(crate) nfc: bool,
    /// Whether a word that is a token is not merged from its bytes.
    pub(crate) ignore_merges: bool,
    /// Whether BOS is put before a text unless the file says otherwise.
    pub(crate) adds_bos: bool,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEEPSEEK_3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// GPT-2's words without the last alternative, so that what follows divides white space too.
const GPT_2_PARTS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

const HAN_AND_HANGUL: &str = "[一-龥ࠀ-一가-퟿]+";

/// GPT-2's own; the others differ from it by what they state.
const GPT_2: ByteLevelPreTokenizer = ByteLevelPreTokenizer {
    names: &["gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "exaone4"],
    patterns: &[],
    gpt2: true,
    nfc: false,
    ignore_merges: false,
    adds_bos: false,
};

/// One that is its patterns alone.
const fn patterns(names: &'static [&'static str], patterns: &'static [&'static str]) -> ByteLevelPreTokenizer {
    ByteLevelPreTokenizer { names, patterns, gpt2: false, ..GPT_2 }
}

static KNOWN: [ByteLevelPreTokenizer; 12] = [
    GPT_2,
    ByteLevelPreTokenizer {
        names: &["starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}"],
        ..GPT_2
    },
    // Numerals other than these stay in their words, as in what transformers makes of SmolLM 2's file.
    ByteLevelPreTokenizer { names: &["smollm"], patterns: &["[0-9]"], ..GPT_2 },
    ByteLevelPreTokenizer {
        ignore_merges: true,
        adds_bos: true,
        ..patterns(&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"], &[LLAMA_3])
    },
    patterns(&["dbrx", "smaug-bpe"], &[LLAMA_3]),
    ByteLevelPreTokenizer { nfc: true, ..patterns(&["qwen2", "deepseek-r1-qwen", "megrez"], &[QWEN_WORDS]) },
    ByteLevelPreTokenizer { ignore_merges: true, adds_bos: true, ..patterns(&["tekken"], &[TEKKEN]) },
    patterns(&["gpt-4o", "llama4"], &[GPT_4O]),
    patterns(&["seed-coder"], &[SEED_CODER]),
    patterns(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, r"\p{N}"]),
    patterns(&["deepseek-v3", "hunyuan-dense"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_3]),
    // llama.cpp's where a converter did not know the model's.
    patterns(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2_PARTS, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

impl ByteLevelPreTokenizer {
    /// The one of that name; of a file without one, `default`.
    pub(crate) fn of(name: Option<&str>) -> Result<&'static Self> {
        let name = name.unwrap_or("default");
        KNOWN.iter().find(|pre_tokenizer| pre_tokenizer.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = KNOWN.iter().flat_map(|pre_tokenizer| pre_tokenizer.names).copied().collect();
            TaskError::UnknownName {
                what: "pre-tokenizer",
                name: name.to_owned(),
                known: format!("{}; otherwise {OWN_TOKENIZER}", known.join(", ")),
            }
        })
    }

    /// As `pre_tokenizer` of a tokenizer.json.
    pub(crate) fn to_json(&self) -> Value {
        let split =
            |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Value> = self.patterns.iter().map(split).collect();
        steps.push(byte_level(None, self.gpt2));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
