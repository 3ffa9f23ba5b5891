//! The keys `tokenizer.*` of a GGUF file (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), checked.

use std::collections::{BTreeMap, HashMap};

use lorakit_format::gguf::GgufValue;

use crate::error::{At, Result, TaskError};
use crate::tokenization::gguf::byte_level_pre_tokenizer::{ByteLevelPreTokenizer, OWN_TOKENIZER};

/// Where the chat template is; those for other uses follow, as in `tokenizer.chat_template.tool_use`.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// How texts become tokens.
pub(crate) enum TokenKind {
    /// `gpt2`: words as bytes, in which pairs are merged.
    ByteLevel {
        pre_tokenizer: &'static ByteLevelPreTokenizer,
        /// The pairs, the first merged first.
        merges: Vec<(String, String)>,
    },
    /// `llama`: SentencePiece's pieces.
    Pieces {
        /// The score of each token; of two pairs, the one whose token scores more is merged first.
        scores: Vec<f32>,
        /// Whether a text gets a space before it.
        space_prefix: bool,
    },
}

/// `LLAMA_TOKEN_TYPE_*` of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal,
    Unknown,
    /// Special, such as BOS.
    Control,
    /// A token of its own wherever a text spells it.
    UserDefined,
    Unused,
    /// `<0x0A>` and other bytes, for what no piece spells.
    Byte,
}

/// A vocabulary, and how its file says to use it.
pub(crate) struct GgufVocabulary {
    pub(crate) kind: TokenKind,
    /// By id. None is there twice.
    pub(crate) tokens: Vec<String>,
    /// The type of each token.
    pub(crate) types: Vec<TokenType>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: u32,
    /// Other tokens that end a reply.
    pub(crate) ends: Vec<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    /// Whether BOS is put before a text.
    pub(crate) adds_bos: bool,
    /// Chat templates by name; `default` is that of all conversations.
    pub(crate) templates: BTreeMap<String, String>,
    /// `general.architecture`.
    pub(crate) architecture: String,
    /// What the file lacks.
    pub(crate) warnings: Vec<String>,
}

impl GgufVocabulary {
    /// Reads the vocabulary of a file with this metadata.
    pub(crate) fn read(metadata: &BTreeMap<String, GgufValue>) -> Result<Self> {
        let keys = Keys(metadata);
        let tokens = tokens(keys)?;
        let count = tokens.len();
        let mut warnings = Vec::new();
        let [eos_id, bos_id, eot, eom, unknown_id, padding] = ["eos", "bos", "eot", "eom", "unknown", "padding"]
            .map(|name| keys.id(&format!("{name}_token_id"), count, &mut warnings));
        let kind = kind(keys, count, &mut warnings)?;
        // llama.cpp's own, for files that name none.
        let ([bos, eos, unknown], adds_bos) = match &kind {
            TokenKind::ByteLevel { pre_tokenizer, .. } => ([None, Some(11), None], pre_tokenizer.adds_bos),
            TokenKind::Pieces { .. } => ([Some(1), Some(2), Some(0)], true),
        };
        let within = |id: Option<u32>| id.filter(|&id| (id as usize) < count);
        let eos = match eos_id? {
            Some(eos) => eos,
            None => {
                let lacking =
                    || TaskError::SpecialTokens(format!("is missing, so that no token ends a text; {OWN_TOKENIZER}"));
                let eos = within(eos).ok_or_else(lacking).at(|| key("eos_token_id"))?;
                warnings.push(format!(
                    "`{}` names no token; as in llama.cpp, `{}` is EOS",
                    key("eos_token_id"),
                    tokens[eos as usize]
                ));
                eos
            }
        };
        Ok(Self {
            types: types(keys, count)?,
            bos: bos_id?.or(within(bos)),
            eos,
            ends: [eot?, eom?].into_iter().flatten().collect(),
            unknown: unknown_id?.or(within(unknown)),
            padding: padding?,
            adds_bos: keys.get("add_bos_token", "true or false", GgufValue::as_bool)?.unwrap_or(adds_bos),
            templates: templates(metadata)?,
            architecture: metadata.get("general.architecture").and_then(GgufValue::as_text).unwrap_or_default().into(),
            warnings,
            kind,
            tokens,
        })
    }
}

/// The keys below `tokenizer.ggml`.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a BTreeMap<String, GgufValue>);

impl<'a> Keys<'a> {
    /// A value, which may be absent.
    fn get<T>(self, name: &str, expected: &str, read: impl Fn(&'a GgufValue) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.get(&key(name)) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(mismatch(expected, value).at(key(name))),
        }
    }

    /// The values of an array, which may be absent.
    fn list<T>(self, name: &str, expected: &str, read: impl Fn(&'a GgufValue) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(values) = self.get(name, &format!("a list of {expected}"), GgufValue::as_array)? else {
            return Ok(None);
        };
        let read = |value| read(value).ok_or_else(|| mismatch(expected, value).at(key(name)));
        values.iter().map(read).collect::<Result<_>>().map(Some)
    }

    /// A list with one value for each of `count` tokens; None where it is absent.
    fn of_tokens<T>(
        self,
        name: &str,
        count: usize,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let list = self.list(name, "numbers", read)?;
        match list.as_ref().map(Vec::len).filter(|&found| found != count) {
            None => Ok(list),
            Some(found) => {
                let expected = format!("{count} numbers, one for each token");
                Err(TaskError::value(expected, found.to_string()).at(key(name)))
            }
        }
    }

    /// The id of one of `count` tokens. As in llama.cpp, one that none of them has is as if it were not there.
    fn id(self, name: &str, count: usize, warnings: &mut Vec<String>) -> Result<Option<u32>> {
        let Some(value) = self.get(name, "the id of a token", GgufValue::as_u64)? else { return Ok(None) };
        let id = u32::try_from(value).ok().filter(|&id| (id as usize) < count);
        if id.is_none() {
            warnings
                .push(format!("`{}` is {value}, not the id of one of the {count} tokens; it is ignored", key(name)));
        }
        Ok(id)
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn mismatch(expected: &str, found: &GgufValue) -> TaskError {
    let found = match found {
        GgufValue::Array(values) => format!("a list of {}", values.len()),
        GgufValue::Text(_) => "a text".to_owned(),
        other => format!("{other:?}"),
    };
    TaskError::value(expected, found)
}

/// The tokens by id.
fn tokens(keys: Keys) -> Result<Vec<String>> {
    let name = || key("tokens");
    let tokens = keys.list("tokens", "texts", GgufValue::as_text)?.filter(|tokens| !tokens.is_empty());
    let lacking = || TaskError::SpecialTokens(format!("the file has no tokens; {OWN_TOKENIZER}"));
    let tokens = tokens.ok_or_else(lacking).at(name)?;
    // llama.cpp's name for a token without one.
    let named = |(id, token): (usize, &str)| if token.is_empty() { format!("[EMPTY_{id}]") } else { token.to_owned() };
    let tokens: Vec<String> = tokens.into_iter().enumerate().map(named).collect();
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = ids.insert(token, id) {
            return Err(TaskError::SpecialTokens(format!("`{token}` is both token {other} and token {id}")).at(name()));
        }
    }
    Ok(tokens)
}

/// How texts become tokens, of which there are `count`.
fn kind(keys: Keys, count: usize, warnings: &mut Vec<String>) -> Result<TokenKind> {
    match keys.get("model", "a text", GgufValue::as_text)? {
        Some("gpt2") => {
            let pre_tokenizer =
                ByteLevelPreTokenizer::of(keys.get("pre", "a text", GgufValue::as_text)?).at(|| key("pre"))?;
            let merges = keys.list("merges", "texts", GgufValue::as_text)?;
            if merges.is_none() {
                warnings.push(format!("no `{}`: each byte becomes a token of its own", key("merges")));
            }
            let pair = |merge: &str| {
                // The first may itself be a space.
                let (at, _) = merge.char_indices().skip(1).find(|&(_, letter)| letter == ' ')?;
                Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
            };
            let expected = "two tokens with a space between them";
            let pair = |merge: &str| pair(merge).ok_or_else(|| TaskError::value(expected, format!("`{merge}`")));
            let merges = merges.unwrap_or_default().into_iter().map(pair).collect::<Result<_>>();
            Ok(TokenKind::ByteLevel { pre_tokenizer, merges: merges.at(|| key("merges"))? })
        }
        Some("llama") => {
            let number = |value: &GgufValue| match *value {
                GgufValue::F32(score) => Some(score),
                ref other => other.as_i64().map(|score| score as f32),
            };
            Ok(TokenKind::Pieces {
                scores: keys.of_tokens("scores", count, number)?.unwrap_or_else(|| vec![0.0; count]),
                space_prefix: keys.get("add_space_prefix", "true or false", GgufValue::as_bool)?.unwrap_or(true),
            })
        }
        found => {
            let found = found.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
            let expected = format!("`gpt2` or `llama` (for another kind, {OWN_TOKENIZER})");
            Err(TaskError::value(expected, found).at(key("model")))
        }
    }
}

/// The type of each of `count` tokens.
fn types(keys: Keys, count: usize) -> Result<Vec<TokenType>> {
    let read = |value: &GgufValue| {
        Some(match value.as_i64()? {
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => TokenType::Normal,
        })
    };
    Ok(keys.of_tokens("token_type", count, read)?.unwrap_or_else(|| vec![TokenType::Normal; count]))
}

/// The chat templates by name.
fn templates(metadata: &BTreeMap<String, GgufValue>) -> Result<BTreeMap<String, String>> {
    let named = metadata.range(CHAT_TEMPLATE.to_owned()..).take_while(|(key, _)| key.starts_with(CHAT_TEMPLATE));
    let mut templates = BTreeMap::new();
    for (key, value) in named {
        let name = match key[CHAT_TEMPLATE.len()..].strip_prefix('.') {
            Some(name) => name,
            None if key == CHAT_TEMPLATE => "default",
            // The names of the others.
            None => continue,
        };
        let text = value.as_text().ok_or_else(|| mismatch("a text", value).at(key.clone()))?;
        templates.insert(name.to_owned(), text.to_owned());
    }
    Ok(templates)
}
