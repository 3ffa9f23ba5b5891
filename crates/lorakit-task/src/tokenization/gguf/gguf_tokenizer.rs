//! The tokenizer of a GGUF file, and the files of a model folder that stand for it.

use std::collections::{BTreeMap, BTreeSet};

use lorakit_format::gguf::GgufValue;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer as HubTokenizer,
};

use crate::chat::chat_template::ChatTemplate;
use crate::chat::template_file::compile;
use crate::error::{Result, TaskError};
use crate::tokenization::gguf::gguf_vocabulary::{GgufVocabulary, TokenKind, TokenType};
use crate::tokenization::gguf::sentence_pieces;
use crate::tokenization::special_tokens::SpecialTokens;
use crate::tokenization::tokenizer_class::byte_level;

/// Tokens that end a text or a turn, as in llama.cpp: a file names one end or two, and its model may write another.
const ENDS: [&str; 12] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// Phi-3's special tokens that leave the space after them to the text; the others take it. A GGUF file does not say so.
const KEEP_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// What a GGUF file holds in place of a model folder's tokenizer files.
pub(crate) struct GgufTokenizer {
    pub(crate) tokenizer: HubTokenizer,
    pub(crate) special: SpecialTokens,
    /// `tokenizer_config.json`.
    config: Value,
    /// What the file lacks.
    pub(crate) warnings: Vec<String>,
}

impl GgufTokenizer {
    /// The tokenizer of a file with this metadata.
    ///
    /// # Errors
    /// If it has none, one of an unknown kind, or one that contradicts itself; the error names the key.
    pub(crate) fn read(metadata: &BTreeMap<String, GgufValue>) -> Result<Self> {
        let vocabulary = GgufVocabulary::read(metadata)?;
        let mut tokenizer = build(&vocabulary)?;
        let is_phi_3 = vocabulary.architecture == "phi3" && matches!(vocabulary.kind, TokenKind::Pieces { .. });
        let added = vocabulary.tokens.iter().zip(&vocabulary.types).filter_map(|(token, kind)| {
            let special = match kind {
                TokenType::Unknown | TokenType::Control => true,
                TokenType::UserDefined => false,
                TokenType::Normal | TokenType::Unused | TokenType::Byte => return None,
            };
            let takes_space = is_phi_3 && special && !KEEP_SPACE.contains(&token.as_str());
            Some(AddedToken::from(token.as_str(), special).normalized(false).rstrip(takes_space))
        });
        tokenizer
            .add_tokens(added.collect::<Vec<_>>())
            .map_err(TaskError::tokenizer("cannot add the file's tokens"))?;
        Ok(Self {
            config: config(&vocabulary),
            special: SpecialTokens { bos: vocabulary.bos, eos: vocabulary.eos, stops: stops(&vocabulary) },
            warnings: vocabulary.warnings,
            tokenizer,
        })
    }

    /// The chat template.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let named = self.config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
        let tokens: Map<String, Value> = named.map(|(key, value)| (key.clone(), value.clone())).collect();
        self.config.get("chat_template").map(|templates| compile(templates, tokens)).transpose()
    }

    /// The files of a model folder with the same tokenizer and template, by name.
    fn model_files(&self) -> Result<Vec<(&'static str, String)>> {
        let stops: Vec<u32> = self.special.stops.iter().copied().collect();
        let generation = json!({"bos_token_id": self.special.bos, "eos_token_id": stops});
        Ok(vec![
            ("tokenizer.json", self.tokenizer.to_string(false).map_err(TaskError::tokenizer("cannot be written"))?),
            ("tokenizer_config.json", format!("{:#}\n", self.config)),
            ("generation_config.json", format!("{generation:#}\n")),
        ])
    }
}

/// The tokenizer files that a model folder made of a GGUF file has, by name: `tokenizer.json`, `tokenizer_config.json` with
/// the chat template, and `generation_config.json`. `metadata` is that of the GGUF file.
///
/// # Errors
/// If it holds no tokenizer, one of an unknown kind, or one that contradicts itself; the error names the key.
pub fn gguf_tokenizer_files(metadata: &BTreeMap<String, GgufValue>) -> Result<Vec<(&'static str, String)>> {
    GgufTokenizer::read(metadata)?.model_files()
}

/// The tokens at which generation stops: those that the file names, and each of [`ENDS`] that is a token of its own in texts
/// or that the chat template writes.
fn stops(vocabulary: &GgufVocabulary) -> BTreeSet<u32> {
    let mut stops = BTreeSet::from([vocabulary.eos]);
    stops.extend(&vocabulary.ends);
    let template = vocabulary.templates.get("default").map_or("", String::as_str);
    let ends = (0..).zip(vocabulary.tokens.iter().zip(&vocabulary.types)).filter(|(_, (token, kind))| {
        let is_whole = matches!(kind, TokenType::Control | TokenType::UserDefined);
        ENDS.contains(&token.as_str()) && (is_whole || template.contains(token.as_str()))
    });
    stops.extend(ends.map(|(id, _)| id));
    stops
}

/// The tokenizer without its added tokens.
fn build(vocabulary: &GgufVocabulary) -> Result<HubTokenizer> {
    let nothing = Value::Null;
    let (merges, [normalizer, pre_tokenizer, decoder]) = match &vocabulary.kind {
        TokenKind::ByteLevel { pre_tokenizer, merges } => {
            let normalizer = if pre_tokenizer.nfc { json!({"type": "NFC"}) } else { nothing };
            (merges.clone(), [normalizer, pre_tokenizer.to_json(), byte_level(None, true)])
        }
        TokenKind::Pieces { scores, space_prefix } => {
            (sentence_pieces::merges(vocabulary, scores), sentence_pieces::pipeline(*space_prefix))
        }
    };
    let mut tokenizer = HubTokenizer::new(model(vocabulary, merges)?);
    tokenizer
        .with_normalizer(part::<NormalizerWrapper>(normalizer)?)
        .map_err(TaskError::tokenizer("cannot be normalized"))?;
    tokenizer.with_pre_tokenizer(part::<PreTokenizerWrapper>(pre_tokenizer)?);
    tokenizer.with_decoder(part::<DecoderWrapper>(decoder)?);
    tokenizer.with_post_processor(part::<PostProcessorWrapper>(post_processor(vocabulary))?);
    Ok(tokenizer)
}

/// The byte-pair encoding.
fn model(vocabulary: &GgufVocabulary, merges: Vec<(String, String)>) -> Result<BPE> {
    let ids: Vocab = vocabulary.tokens.iter().cloned().zip(0..).collect();
    for (first, second) in &merges {
        // The builder would panic.
        if let Some(token) =
            [first, second, &format!("{first}{second}")].into_iter().find(|token| !ids.contains_key(*token))
        {
            return Err(TaskError::SpecialTokens(format!("the pair `{first} {second}` needs a token `{token}`")));
        }
    }
    let model = BPE::builder().vocab_and_merges(ids, merges);
    let model = match &vocabulary.kind {
        TokenKind::ByteLevel { pre_tokenizer, .. } => model.ignore_merges(pre_tokenizer.ignore_merges),
        TokenKind::Pieces { .. } => {
            let model = model.byte_fallback(true).fuse_unk(true);
            match vocabulary.unknown {
                Some(id) => model.unk_token(vocabulary.tokens[id as usize].clone()),
                None => model,
            }
        }
    };
    model.build().map_err(TaskError::tokenizer("not a byte-pair encoding"))
}

/// What puts BOS before a text.
fn post_processor(vocabulary: &GgufVocabulary) -> Value {
    let Some(bos) = vocabulary.bos.filter(|_| vocabulary.adds_bos) else { return Value::Null };
    let token = &vocabulary.tokens[bos as usize];
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}}
    })
}

/// The `tokenizer_config.json`.
fn config(vocabulary: &GgufVocabulary) -> Value {
    let mut config = json!({
        "clean_up_tokenization_spaces": false,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let named = [
        ("bos_token", vocabulary.bos),
        ("eos_token", Some(vocabulary.eos)),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.padding),
    ];
    for (name, id) in named {
        if let Some(id) = id {
            config[name] = vocabulary.tokens[id as usize].as_str().into();
        }
    }
    let templates = &vocabulary.templates;
    match (templates.get("default"), templates.len()) {
        (_, 0) => {}
        (Some(text), 1) => config["chat_template"] = text.as_str().into(),
        _ => {
            let named = templates.iter().map(|(name, text)| json!({"name": name, "template": text}));
            config["chat_template"] = named.collect();
        }
    }
    config
}

/// A part of a tokenizer from the JSON of a tokenizer.json; None for null.
fn part<T: DeserializeOwned>(json: Value) -> Result<Option<T>> {
    if json.is_null() { Ok(None) } else { Ok(Some(serde_json::from_value(json)?)) }
}
