//! A tokenizer as one model uses it: text to tokens and back, BOS and EOS.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use tokenizers::Tokenizer;

use crate::special::{self, Special};

/// A model's tokenizer, with its BOS and EOS.
///
/// Truncation and padding that a `tokenizer.json` may carry are switched off: lengths are decided
/// by the caller, and padding does not exist.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// What the post-processor puts before a text: most often BOS, or nothing.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: u32,
    stops: Vec<u32>,
}

impl Vocabulary {
    /// Opens a Hugging Face model folder: `tokenizer.json`, and EOS from `tokenizer_config.json`,
    /// `special_tokens_map.json`, `config.json` or `generation_config.json`.
    ///
    /// # Errors
    /// Where `tokenizer.json` cannot be read, or none of the files names an EOS token that the
    /// tokenizer has.
    pub fn open(folder: &Path) -> Result<Vocabulary> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path)
            .with_context(|| format!("cannot read {}; a model folder needs a tokenizer", path.display()))?;
        let tokenizer = parse(&bytes).with_context(|| format!("{}", path.display()))?;
        let special = special::read(folder, &tokenizer)?;
        Vocabulary::new(tokenizer, special).with_context(|| format!("{}", folder.display()))
    }

    /// A tokenizer that lies in memory: the bytes of a `tokenizer.json`, and the text of its EOS
    /// token.
    ///
    /// # Errors
    /// Where the bytes are no tokenizer, or it has no such token.
    pub fn from_bytes(json: &[u8], eos: &str) -> Result<Vocabulary> {
        let tokenizer = parse(json)?;
        let id = tokenizer
            .token_to_id(eos)
            .ok_or_else(|| anyhow!("the tokenizer has no token `{eos}` to end a text with"))?;
        Vocabulary::new(tokenizer, Special { bos: None, eos: id, stops: BTreeSet::from([id]) })
    }

    fn new(mut tokenizer: Tokenizer, special: Special) -> Result<Vocabulary> {
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
        tokenizer.with_padding(None);
        let prefix = prefix(&tokenizer)?;
        let bos = prefix.first().copied().or(special.bos);
        let stops = special.stops.into_iter().collect();
        Ok(Vocabulary { tokenizer, prefix, bos, eos: special.eos, stops })
    }

    /// The tokens of a text as the model is to read it: BOS first where the tokenizer's
    /// post-processor puts it, once (a text that spells BOS itself gets no second one). What a
    /// post-processor puts after a text is left out, since the text goes on.
    ///
    /// # Errors
    /// Where the tokenizer fails, for instance on a character without an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let bare = self.encode_bare(text)?;
        if self.prefix.is_empty() || bare.starts_with(&self.prefix) {
            return Ok(bare);
        }
        Ok([self.prefix.as_slice(), &bare].concat())
    }

    /// The tokens of a text, nothing added.
    ///
    /// # Errors
    /// As [`Vocabulary::encode`].
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| anyhow!("cannot tokenise: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens that follow `prompt` in the encoding of `prompt` and `continuation` together,
    /// where `tokens` encode `prompt`. So the text between the two is exactly what was written: a
    /// tokenizer that puts a space before every text it is given puts none in the middle.
    ///
    /// Where a token would cross the border there is no such encoding; the continuation is then
    /// encoded by itself, because at generation the prompt comes first and cannot be changed.
    ///
    /// # Errors
    /// As [`Vocabulary::encode`].
    pub(crate) fn encode_after(&self, prompt: &str, tokens: &[u32], continuation: &str) -> Result<Vec<u32>> {
        let whole = self.encode(&format!("{prompt}{continuation}"))?;
        match whole.strip_prefix(tokens) {
            Some(rest) => Ok(rest.to_vec()),
            None => self.encode_bare(continuation),
        }
    }

    /// The text of tokens, special tokens left out.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| anyhow!("cannot decode: {error}"))
    }

    /// A token as the vocabulary spells it, such as `Ġthe` or `▁the`; None for an id it lacks.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// A token's id, by its spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// How many tokens there are, added ones included.
    pub fn size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The token that ends a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token that begins a text, where the tokenizer has one. Whether [`Vocabulary::encode`]
    /// puts it is another question: see [`Vocabulary::adds_bos`].
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// True where the post-processor puts something before every text.
    pub fn adds_bos(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// How many tokens the post-processor puts before every text.
    pub(crate) fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Every token at which generation ends: EOS, and those that the model's configuration adds.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stops
    }
}

fn parse(json: &[u8]) -> Result<Tokenizer> {
    Tokenizer::from_bytes(json).map_err(|error| anyhow!("not a tokenizer.json: {error}"))
}

/// What the post-processor puts before a text. It shows from a text encoded with and without.
fn prefix(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let encode = |special| {
        let encoding = tokenizer.encode_fast("a", special);
        let encoding = encoding.map_err(|error| anyhow!("cannot tokenise: {error}"))?;
        Ok::<_, anyhow::Error>(encoding.get_ids().to_vec())
    };
    let (with, without) = (encode(true)?, encode(false)?);
    if without.is_empty() {
        bail!("the tokenizer gives no token for the text `a`");
    }
    let start = with.windows(without.len()).position(|window| window == without);
    match start {
        Some(start) => Ok(with[..start].to_vec()),
        None => bail!("the tokenizer's post-processor changes the text's own tokens"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// A tokenizer in the manner of Llama's: a space before every text, bytes for unknown
    /// characters, BOS by the post-processor; and the one merged word `cat`.
    pub(crate) fn tiny_json() -> serde_json::Value {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let specials = ["<unk>", "<s>", "</s>"].map(String::from);
        let merged = ["▁", "ca", "cat", "▁cat"].map(String::from);
        let characters = ('!'..='~').map(String::from);
        let all = specials.iter().cloned().chain(bytes).chain(merged).chain(characters);
        let vocab: serde_json::Map<_, _> = all.enumerate().map(|(id, token)| (token, json!(id))).collect();
        let added = specials.iter().enumerate().map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        });
        json!({
            "version": "1.0",
            // Both must be switched off.
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"},
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {
                    "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                    "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
                "merges": [["c", "a"], ["ca", "t"], ["▁", "cat"]]}
        })
    }

    pub(crate) fn tiny() -> Vocabulary {
        Vocabulary::from_bytes(tiny_json().to_string().as_bytes(), "</s>").unwrap()
    }

    pub(crate) fn spell(vocabulary: &Vocabulary, tokens: &[u32]) -> String {
        let tokens: Vec<_> = tokens.iter().map(|&id| vocabulary.token(id).unwrap()).collect();
        tokens.join(" ")
    }

    #[test]
    fn bos_stands_first_and_once_and_eos_does_not_follow() {
        let tiny = tiny();
        assert_eq!(spell(&tiny, &tiny.encode("cat a").unwrap()), "<s> ▁cat ▁ a");
        assert_eq!(spell(&tiny, &tiny.encode("<s>cat").unwrap()), "<s> ▁cat");
        assert_eq!(spell(&tiny, &tiny.encode_bare("cat").unwrap()), "▁cat");
        assert_eq!((tiny.bos(), tiny.eos(), tiny.adds_bos()), (Some(1), 2, true));
    }

    #[test]
    fn a_continuation_gets_no_space_that_was_not_written() {
        let tiny = tiny();
        let after = |prompt: &str, continuation: &str| {
            let tokens = tiny.encode(prompt).unwrap();
            spell(&tiny, &tiny.encode_after(prompt, &tokens, continuation).unwrap())
        };
        assert_eq!(after("a\n", "cat"), "cat");
        assert_eq!(after("a", " cat"), "▁cat");
        // The one token of `▁cat` crosses the border; the prompt stays, the rest stands alone.
        assert_eq!(after("ca", "t"), "▁ t");
    }

    #[test]
    fn an_eos_that_is_no_token_is_refused() {
        let error = Vocabulary::from_bytes(tiny_json().to_string().as_bytes(), "<end>");
        assert!(error.unwrap_err().to_string().contains("`<end>`"));
        assert!(Vocabulary::from_bytes(b"{}", "</s>").is_err());
    }
}
