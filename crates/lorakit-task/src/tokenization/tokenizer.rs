//! A model's tokenizer: text to tokens and back, with BOS and EOS.

use std::sync::{Arc, OnceLock};

use lorakit_format::hash::sha256;
use serde_json::json;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Encoding, Tokenizer as HubTokenizer};

use crate::chat::chat_template::ChatTemplate;
use crate::error::{Result, TaskError};
use crate::tokenization::row_encoding::{BosTokens, RowEncoding};
use crate::tokenization::row_layout::RowLayout;
use crate::tokenization::special_tokens::SpecialTokens;

/// A model's tokenizer, with its BOS and EOS.
///
/// Truncation and padding in `tokenizer.json` are switched off: the caller decides lengths, and rows are never padded. A
/// clone shares the vocabulary.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    tokenizer: Arc<HubTokenizer>,
    /// The SHA-256 of vocabulary and rules, once it was asked for: they may have millions of characters.
    rules_sha256: Arc<OnceLock<String>>,
    /// What the post-processor puts before a text: BOS or nothing.
    prefix: Vec<u32>,
    /// What the post-processor puts after a text: EOS or nothing.
    suffix: Vec<u32>,
    /// What a row is to the base.
    layout: RowLayout,
    bos: Option<u32>,
    eos: u32,
    stops: Vec<u32>,
    /// The chat template, or why the one that is there cannot be used.
    chat_template: Result<Option<ChatTemplate>, String>,
    encoding: RowEncoding,
    warnings: Vec<String>,
}

impl Tokenizer {
    /// A tokenizer without chat template, to which rows are streams.
    pub(crate) fn new(mut tokenizer: HubTokenizer, special: SpecialTokens) -> Result<Tokenizer> {
        tokenizer.with_truncation(None).map_err(TaskError::tokenizer("cannot switch truncation off"))?;
        tokenizer.with_padding(None);
        let (prefix, suffix) = affixes(&tokenizer)?;
        Ok(Tokenizer {
            tokenizer: Arc::new(tokenizer),
            rules_sha256: Arc::default(),
            bos: prefix.first().copied().or(special.bos),
            prefix,
            suffix,
            layout: RowLayout::default(),
            eos: special.eos,
            stops: special.stops.into_iter().collect(),
            chat_template: Ok(None),
            encoding: RowEncoding::default(),
            warnings: Vec::new(),
        })
    }

    /// The same tokenizer, with these choices in turning rows into tokens in place of earlier ones.
    pub fn with_encoding(mut self, encoding: RowEncoding) -> Tokenizer {
        let writes_bos = encoding.bos != BosTokens::Never;
        self.chat_template = self.chat_template.map(|template| template.map(|template| template.with_bos(writes_bos)));
        self.encoding = encoding;
        self
    }

    /// The same tokenizer, with the chat template that was found, or why it cannot be used.
    pub(crate) fn with_found_template(mut self, template: Result<Option<ChatTemplate>, String>) -> Tokenizer {
        self.chat_template = template;
        self
    }

    /// The same tokenizer, with these warnings.
    pub(crate) fn with_warnings(mut self, warnings: Vec<String>) -> Tokenizer {
        self.warnings = warnings;
        self
    }

    /// The same tokenizer, for a base to which rows are of this layout.
    pub fn with_layout(mut self, layout: RowLayout) -> Tokenizer {
        self.layout = layout;
        self
    }

    /// What files of the folder say that has no effect, as in transformers.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What a row is to the base.
    pub fn layout(&self) -> RowLayout {
        self.layout
    }

    /// How rows become tokens.
    pub fn encoding(&self) -> RowEncoding {
        self.encoding
    }

    /// The base's chat template.
    ///
    /// # Errors
    /// If the base has none, or one that cannot be compiled.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        if self.layout != RowLayout::Stream {
            return Err(TaskError::ChatTemplate(
                "the base is an encoder-decoder, which reads a prompt and writes an answer, not conversations. Use rows of \
                 prompt and answer without --chat, or a decoder that was trained on conversations"
                    .to_owned(),
            ));
        }
        match &self.chat_template {
            Ok(Some(template)) => Ok(template),
            Ok(None) => Err(TaskError::ChatTemplate(
                "the base has none: its folder has no chat_template.jinja, and its tokenizer_config.json no \
                 `chat_template`. Use a base that was trained on conversations, or rows of prompt and answer without \
                 --chat"
                    .to_owned(),
            )),
            Err(why) => Err(TaskError::ChatTemplate(why.clone())),
        }
    }

    /// Whether the base has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.layout == RowLayout::Stream && matches!(self.chat_template, Ok(Some(_)))
    }

    /// The tokens of a text without BOS or EOS, with the bytes of the text that each comes from.
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<Encoding> {
        self.tokenizer.encode(text, false).map_err(TaskError::tokenizer("cannot tokenize"))
    }

    /// The texts of the special tokens, and of those at which generation stops.
    pub(crate) fn special_texts(&self) -> Vec<String> {
        let added = self.tokenizer.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(id, token)| token.special || self.stops.contains(id));
        special.map(|(_, token)| token.content).filter(|text| !text.is_empty()).collect()
    }

    /// The texts of the tokens at which generation stops.
    pub(crate) fn stop_texts(&self) -> Vec<String> {
        self.stops.iter().filter_map(|&id| self.token(id)).filter(|text| !text.is_empty()).collect()
    }

    /// The tokens of a text, with BOS first if the tokenizer's post-processor adds it, once (a text that spells BOS gets
    /// no second one). What the post-processor adds after a text is left out, since the text continues.
    ///
    /// # Errors
    /// If the tokenizer fails, for example on an unknown character where it has no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = self.encode_without_special(text)?;
        let prefix = self.prefix();
        if prefix.is_empty() || tokens.starts_with(prefix) {
            return Ok(tokens);
        }
        Ok([prefix, &tokens].concat())
    }

    /// The tokens of a text that does not continue, with what the post-processor puts before and after it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        Ok([self.encode(text)?.as_slice(), &self.suffix].concat())
    }

    /// The number of tokens of a prompt without text: what the post-processor adds, and what a decoder starts with.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn bare_prompt_len(&self) -> Result<usize> {
        match self.layout {
            RowLayout::Stream => Ok(self.encode("")?.len()),
            RowLayout::SourceTarget { .. } => Ok(self.encode_whole("")?.len() + 1),
        }
    }

    /// The tokens of a text, without BOS or EOS.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_without_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(TaskError::tokenizer("cannot tokenize"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens that follow `prompt` in the encoding of `prompt` and `continuation` together; `tokens` encode `prompt`.
    /// So a tokenizer that puts a space before every text puts none between the two.
    ///
    /// If a token would span the boundary there is no such encoding. The continuation is then encoded by itself, because
    /// in generation the prompt comes first and cannot be changed.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_after(&self, prompt: &str, tokens: &[u32], continuation: &str) -> Result<Vec<u32>> {
        let whole = self.encode(&format!("{prompt}{continuation}"))?;
        match whole.strip_prefix(tokens) {
            Some(rest) => Ok(rest.to_vec()),
            None => self.encode_without_special(continuation),
        }
    }

    /// The text of tokens, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(TaskError::tokenizer("cannot decode"))
    }

    /// A token as the vocabulary spells it, such as `Ġthe` or `▁the`; None for an unknown id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// A token's id, by its spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Whether a token is special: [`Tokenizer::decode`] leaves it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// Whether [`Tokenizer::decode`] leaves a token out: a special or an unknown one.
    pub(crate) fn is_skipped(&self, id: u32) -> bool {
        self.token(id).is_none_or(|token| self.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// How tokens become text; None: they are joined with spaces.
    pub(crate) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.tokenizer.get_decoder()
    }

    /// The number of tokens, including added ones.
    pub fn size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The token at the end of a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token at the beginning of a text, if the tokenizer has one. [`Tokenizer::encode`] adds it only if
    /// [`Tokenizer::adds_bos`].
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the post-processor puts BOS before every text.
    pub fn adds_bos(&self) -> bool {
        !self.prefix().is_empty()
    }

    /// The tokens that are put before every text: the post-processor's, unless there is to be no BOS.
    pub(crate) fn prefix(&self) -> &[u32] {
        match self.encoding.bos {
            BosTokens::Auto => &self.prefix,
            BosTokens::Never => &[],
        }
    }

    /// The SHA-256 of all that decides the tokens of a text, in hexadecimal, and of what chat templates see of the model; not
    /// of the template's text ([`ChatTemplate::sha256`]) and the choices of [`Tokenizer::with_encoding`].
    ///
    /// # Errors
    /// If the tokenizer cannot be written as JSON.
    pub fn sha256(&self) -> Result<String> {
        let rules = match self.rules_sha256.get() {
            Some(rules) => rules.clone(),
            None => {
                let text =
                    self.tokenizer.to_string(false).map_err(TaskError::tokenizer("cannot be written as JSON"))?;
                self.rules_sha256.get_or_init(|| sha256(text.as_bytes())).clone()
            }
        };
        let template = self.chat_template.as_ref().ok().and_then(Option::as_ref);
        let all = json!({
            "rules": rules,
            "split_special_tokens": self.tokenizer.get_encode_special_tokens(),
            "bos": self.bos,
            "eos": self.eos,
            "stops": self.stops,
            "layout": format!("{:?}", self.layout),
            "template": template.map(ChatTemplate::context),
        });
        Ok(sha256(all.to_string().as_bytes()))
    }

    /// Every token at which generation stops: EOS, and those that the model's configuration adds.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stops
    }
}

/// What the post-processor puts before and after a text, found by encoding a text with it and without.
fn affixes(tokenizer: &HubTokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let encode = |special| {
        let encoding = tokenizer.encode_fast("a", special);
        let encoding = encoding.map_err(TaskError::tokenizer("cannot tokenize"))?;
        Ok::<_, TaskError>(encoding.get_ids().to_vec())
    };
    let (with, without) = (encode(true)?, encode(false)?);
    if without.is_empty() {
        return Err(TaskError::SpecialTokens("the tokenizer gives no token for the text `a`".to_string()));
    }
    let start = with.windows(without.len()).position(|window| window == without);
    match start {
        Some(start) => Ok((with[..start].to_vec(), with[start + without.len()..].to_vec())),
        None => Err(TaskError::SpecialTokens(
            "the tokenizer's post-processor changes the tokens of the text itself".to_string(),
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// A tokenizer like Llama's: a space before every text, bytes for unknown characters, BOS by the post-processor, and
    /// one merged word, `cat`.
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

    pub(crate) fn tiny() -> Tokenizer {
        Tokenizer::from_bytes(tiny_json().to_string().as_bytes(), "</s>").unwrap()
    }

    #[test]
    fn choices_can_be_taken_back_and_are_not_in_the_hash() {
        let never = RowEncoding { bos: BosTokens::Never, ..RowEncoding::default() };
        let (auto, without) = (tiny(), tiny().with_encoding(never));
        assert_eq!((auto.encode("cat").unwrap()[0], without.adds_bos()), (1, false));
        assert_eq!(without.encode("cat").unwrap(), auto.encode("cat").unwrap()[1..]);
        let again = without.clone().with_encoding(RowEncoding::default());
        assert_eq!(again.encode("cat").unwrap(), auto.encode("cat").unwrap());
        assert_eq!(without.sha256().unwrap(), auto.sha256().unwrap());
        assert_eq!(tiny().sha256().unwrap(), auto.sha256().unwrap());

        let mut json = tiny_json();
        json["post_processor"] = serde_json::Value::Null;
        let other = Tokenizer::from_bytes(json.to_string().as_bytes(), "</s>").unwrap();
        assert_ne!(other.sha256().unwrap(), auto.sha256().unwrap());
        let target = tiny().with_layout(RowLayout::SourceTarget { start: 0 });
        assert_ne!(target.sha256().unwrap(), auto.sha256().unwrap());
    }

    pub(crate) fn spell(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
        let tokens: Vec<_> = tokens.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
        tokens.join(" ")
    }

    #[test]
    fn encode_adds_bos_once_and_no_eos() {
        let tiny = tiny();
        assert_eq!(spell(&tiny, &tiny.encode("cat a").unwrap()), "<s> ▁cat ▁ a");
        assert_eq!(spell(&tiny, &tiny.encode("<s>cat").unwrap()), "<s> ▁cat");
        assert_eq!(spell(&tiny, &tiny.encode_without_special("cat").unwrap()), "▁cat");
        assert_eq!((tiny.bos(), tiny.eos(), tiny.adds_bos()), (Some(1), 2, true));
    }

    #[test]
    fn encode_after_adds_no_space() {
        let tiny = tiny();
        let after = |prompt: &str, continuation: &str| {
            let tokens = tiny.encode(prompt).unwrap();
            spell(&tiny, &tiny.encode_after(prompt, &tokens, continuation).unwrap())
        };
        assert_eq!(after("a\n", "cat"), "cat");
        assert_eq!(after("a", " cat"), "▁cat");
        // The token `▁cat` would span the boundary: the continuation is encoded by itself.
        assert_eq!(after("ca", "t"), "▁ t");
    }

    #[test]
    fn an_unknown_eos_is_refused() {
        let error = Tokenizer::from_bytes(tiny_json().to_string().as_bytes(), "<end>");
        assert!(error.unwrap_err().to_string().contains("`<end>`"));
        assert!(Tokenizer::from_bytes(b"{}", "</s>").is_err());
    }
}
