//! Tokens that the files beside a `tokenizer.json` add to it, as transformers 5 adds them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer as HubTokenizer};

use crate::error::{At, Result, TaskError};
use crate::tokenization::tokenizer_class::TokenizerClass;

/// The standard names of special tokens, in the order in which they are added.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A special token with its name, such as `eos_token`.
type NamedToken = (String, AddedToken);

/// The tokens that `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` name.
pub(crate) struct AddedTokens {
    /// By the id that a file gives them.
    numbered: BTreeMap<u32, AddedToken>,
    /// Special tokens with names, such as `eos_token`, in the order in which they are added.
    named: Vec<NamedToken>,
    /// The keys of the files that name them, in the order of the files. Hashes of what chat templates see depend on it.
    order: Vec<String>,
    /// Other special tokens.
    extra: Vec<AddedToken>,
}

/// The files beside a `tokenizer.json`, null where absent, and the tokens that it adds itself.
pub(crate) struct TokenFiles<'a> {
    /// `tokenizer_config.json`.
    pub(crate) config: &'a Value,
    /// `special_tokens_map.json`.
    pub(crate) special_map: &'a Value,
    /// `added_tokens.json`.
    pub(crate) added: &'a Value,
    /// `added_tokens` of `tokenizer.json`.
    pub(crate) own: BTreeMap<u32, AddedToken>,
}

impl AddedTokens {
    /// Reads the tokens that the files name. Where tokenizer_config.json has `added_tokens_decoder`, that replaces the
    /// older special_tokens_map.json and added_tokens.json.
    pub(crate) fn read(files: TokenFiles<'_>, class: TokenizerClass) -> Result<Self> {
        let decoder = files.config["added_tokens_decoder"].as_object();
        let mut settings = files.config.as_object().cloned().unwrap_or_default();
        if let (None, Some(map)) = (decoder, files.special_map.as_object()) {
            settings.extend(map.clone());
        }
        let (extra, other_names) = extra(&settings)?;
        let mut named = Vec::new();
        for name in NAMES {
            let default = class.default_tokens().iter().find(|(key, _)| *key == name).map(|(_, text)| *text);
            let token = match settings.get(name) {
                Some(value) => special_token(value).at(|| format!("`{name}`"))?,
                None => default.map(|text| AddedToken::from(text, true)),
            };
            named.extend(token.map(|token| (name.to_owned(), token)));
        }
        let numbered = match decoder {
            Some(decoder) => decoded(decoder)?,
            None => {
                // Tokens with names of their own are not normal text either, but transformers normalizes them here.
                let special = named.iter().map(|(_, token)| token).chain(&extra);
                let special: Vec<&str> = special.map(|token| token.content.as_str()).collect();
                let mut numbered = added(files.added, &special)?;
                numbered.extend(files.own);
                numbered
            }
        };
        named.extend(other_names);
        let order = settings.keys().cloned().collect();
        Ok(Self { numbered, named, order, extra })
    }

    /// The texts of the tokens with names: what chat templates see of them.
    pub(crate) fn texts_by_name(&self) -> Map<String, Value> {
        let mut texts = Map::new();
        let text = |name: &String| {
            // Of two of one name, the first counts.
            let (_, token) = self.named.iter().find(|(other, _)| other == name)?;
            Some((name.clone(), Value::from(token.content.as_str())))
        };
        texts.extend(self.order.iter().chain(self.named.iter().map(|(name, _)| name)).filter_map(text));
        texts
    }

    /// Adds the tokens that `tokenizer` lacks. A token that no vocabulary has gets the next free id, whatever id the files
    /// give it: the result lists those that differ.
    pub(crate) fn add_to(self, tokenizer: &mut HubTokenizer, class: TokenizerClass) -> Result<Vec<String>> {
        let present: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        let mut tokens: Vec<AddedToken> =
            self.numbered.values().filter(|token| !present.contains(token)).cloned().collect();
        for token in &mut tokens {
            token.special |= self.named.iter().any(|(_, named)| named.content == token.content);
        }
        let known: BTreeSet<String> = present.iter().chain(&tokens).map(|token| token.content.clone()).collect();
        // Of two that name the same token, the flags of the second count.
        let special = || self.named.iter().map(|(_, token)| token).chain(&self.extra);
        tokens.extend(special().filter(|token| !known.contains(&token.content)).cloned());
        if class == TokenizerClass::Qwen2 {
            tokens.extend(special().map(|token| AddedToken::from(&*token.content, true)));
        }
        tokenizer.add_tokens(tokens).map_err(TaskError::tokenizer("cannot add tokens"))?;
        let moved = self.numbered.into_iter().filter_map(|(stated, token)| {
            let id = tokenizer.token_to_id(&token.content).filter(|&id| id != stated)?;
            Some(format!("token `{}` has id {id}, as in transformers, but a file gives it {stated}", token.content))
        });
        Ok(moved.collect())
    }
}

/// The tokens of `added_tokens` in a tokenizer.json, by id.
pub(crate) fn own_tokens(added: &Value) -> Result<BTreeMap<u32, AddedToken>> {
    let own = |value: &Value| {
        let id = value["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| TaskError::SpecialTokens(format!("expected a token with `id`, found {value}")))?;
        Ok((id, token(value, false)?))
    };
    added.as_array().into_iter().flatten().map(own).collect::<Result<_>>().at(|| "`added_tokens`")
}

/// The special tokens without a standard name: a list, and those with names of their own.
fn extra(settings: &Map<String, Value>) -> Result<(Vec<AddedToken>, Vec<NamedToken>)> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    };
    let given = |key: &str| settings.get(key).filter(|value| !is_empty(value)).map(|value| (key.to_owned(), value));
    let (mut extra, mut named) = (Vec::new(), Vec::new());
    if let Some((key, value)) = given("extra_special_tokens").or_else(|| given("additional_special_tokens")) {
        let found = || TaskError::SpecialTokens(format!("expected a list of tokens, found {value}"));
        match value {
            Value::Array(values) => {
                for value in values {
                    extra.extend(special_token(value).at(|| format!("`{key}`"))?);
                }
            }
            Value::Object(values) => {
                for (name, value) in values {
                    let token = special_token(value).at(|| format!("`{key}`"))?;
                    named.extend(token.map(|token| (name.clone(), token)));
                }
            }
            _ => return Err(found().at(format!("`{key}`"))),
        }
    }
    for (key, value) in settings.iter().filter(|(key, _)| key.ends_with("_token") && !NAMES.contains(&key.as_str())) {
        // Flags such as `add_bos_token` end the same.
        if value.is_string() || value.is_object() {
            let token = special_token(value).at(|| format!("`{key}`"))?;
            named.extend(token.map(|token| (key.clone(), token)));
        }
    }
    Ok((extra, named))
}

/// The tokens of `added_tokens_decoder`.
fn decoded(decoder: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>> {
    let token = |(id, value): (&String, &Value)| {
        let number = id.parse().map_err(|_| TaskError::SpecialTokens(format!("`{id}` is not a token id")))?;
        Ok((number, token(value, false)?))
    };
    decoder.iter().map(token).collect::<Result<_>>().at(|| "`added_tokens_decoder`")
}

/// The tokens of added_tokens.json, of which `special` are special.
fn added(added: &Value, special: &[&str]) -> Result<BTreeMap<u32, AddedToken>> {
    let token = |(text, id): (&String, &Value)| {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| TaskError::SpecialTokens(format!("{id} is not a token id")))?;
        Ok((number, AddedToken::from(text.as_str(), special.contains(&text.as_str()))))
    };
    let tokens = added.as_object().into_iter().flatten().map(token);
    tokens.collect::<Result<_>>().at(|| "added_tokens.json")
}

/// A special token: its text, or an object with its flags. None for null.
fn special_token(value: &Value) -> Result<Option<AddedToken>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(AddedToken::from(text.as_str(), true))),
        value => token(value, true).map(Some),
    }
}

/// A token with its flags. Special tokens are not normalized, unless a flag says so.
fn token(value: &Value, special: bool) -> Result<AddedToken> {
    let content = value["content"].as_str();
    let content =
        content.ok_or_else(|| TaskError::SpecialTokens(format!("expected a token with `content`, found {value}")))?;
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    let special = special || flag("special", false);
    Ok(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{AddedTokens, TokenFiles};
    use crate::chat::conversation::{Conversation, Message};
    use crate::tokenization::special_tokens::tests::open;
    use crate::tokenization::tokenizer::Tokenizer;
    use crate::tokenization::tokenizer::tests::spell;
    use crate::tokenization::tokenizer_class::TokenizerClass;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    const LLAMA: &str = "LlamaTokenizerFast";
    const AS_FILE: &str = "PreTrainedTokenizerFast";

    /// A folder of class `class` with `config` in tokenizer_config.json, and one more file.
    fn folder(class: &str, config: Value, more: (&str, Value)) -> Tokenizer {
        let mut all = json!({"tokenizer_class": class, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let (all, second) = (all.to_string(), more.1.to_string());
        let model = r#"{"model_type": "llama", "vocab_size": 400}"#;
        open(&[("tokenizer_config.json", &all), ("config.json", model), (more.0, &second)]).unwrap()
    }

    fn encode(tokenizer: &Tokenizer, text: &str) -> String {
        spell(tokenizer, &tokenizer.encode_without_special(text).unwrap())
    }

    fn none() -> (&'static str, Value) {
        ("other.json", json!({}))
    }

    fn token(flags: Value) -> Value {
        let mut token =
            json!({"content": "<|t|>", "lstrip": false, "normalized": false, "rstrip": false, "special": true});
        token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        token
    }

    /// Tokens by transformers 5.23's `AutoTokenizer`.
    #[test]
    fn tokens_that_no_tokenizer_json_has_are_tokens_of_their_own() {
        let decoder = |flags| json!({"added_tokens_decoder": {"357": token(flags)}});
        let map = |value| ("special_tokens_map.json", value);
        let with_space = "▁cat ▁ <|t|> ▁ ▁cat";
        for (config, more, expected) in [
            (decoder(json!({})), none(), with_space),
            (decoder(json!({"special": false, "rstrip": true})), none(), "▁cat ▁ <|t|> ▁cat"),
            (json!({"additional_special_tokens": ["<|t|>"]}), none(), with_space),
            (json!({"extra_special_tokens": {"tool_token": "<|t|>"}}), none(), with_space),
            (json!({"image_token": "<|t|>"}), none(), with_space),
            (json!({"pad_token": "<|t|>"}), none(), with_space),
            (json!({}), map(json!({"additional_special_tokens": ["<|t|>"]})), with_space),
            (json!({}), map(json!({"eos_token": token(json!({}))})), with_space),
            (json!({}), ("added_tokens.json", json!({"<|t|>": 357})), "▁cat ▁<|t|> ▁cat"),
            // special_tokens_map.json counts only where there is no `added_tokens_decoder`.
            (
                json!({"added_tokens_decoder": {}}),
                map(json!({"additional_special_tokens": ["<|t|>"]})),
                "▁cat ▁ < | t | > ▁cat",
            ),
        ] {
            let text = format!("{config} {more:?}");
            assert_eq!(encode(&folder(AS_FILE, config, more), "cat <|t|> cat"), expected, "{text}");
        }
        let map = folder(AS_FILE, json!({}), map(json!({"eos_token": token(json!({}))})));
        assert_eq!((map.eos(), map.id("<|t|>")), (357, Some(357)));
    }

    /// Each printed by transformers 5.23 with a folder of these files.
    #[test]
    fn a_chat_template_sees_the_special_tokens_that_transformers_has() {
        let seen = |class: &str, mut config: Value, map: Value| {
            let names = ["bos", "eos", "pad", "unk", "image"].map(|name| format!("{{{{ {name}_token }}}}"));
            config["chat_template"] = names.join("|").into();
            config["tokenizer_class"] = class.into();
            let files = [("config.json", json!({"eos_token_id": 2})), ("tokenizer_config.json", config)];
            let files = files.map(|(name, value)| (name, value.to_string()));
            let map = map.to_string();
            let tokenizer =
                open(&[(files[0].0, &files[0].1), (files[1].0, &files[1].1), ("special_tokens_map.json", &map)]);
            let chat = Conversation::new(vec![Message::new("user", "a")]);
            tokenizer.unwrap().chat_template().unwrap().render(&chat, false).unwrap().text
        };
        let (none, all) = (json!({}), json!({"bos_token": "<s>", "pad_token": {"content": "<unk>"}}));
        let backend = "PreTrainedTokenizerFast";
        for (class, config, map, expected) in [
            (backend, none.clone(), none.clone(), "||||"),
            ("LlamaTokenizer", none.clone(), none.clone(), "<s>|</s>||<unk>|"),
            ("LlamaTokenizer", json!({"bos_token": null, "unk_token": "</s>"}), none.clone(), "|</s>||</s>|"),
            (backend, json!({"bos_token": "</s>"}), all.clone(), "<s>||<unk>||"),
            (backend, json!({"bos_token": "</s>"}), json!({"bos_token": null}), "||||"),
            (backend, json!({"bos_token": "</s>", "added_tokens_decoder": {}}), all, "</s>||||"),
            (backend, json!({"extra_special_tokens": {"image_token": "<s>"}}), none.clone(), "||||<s>"),
            (backend, json!({"image_token": "<s>"}), none, "||||<s>"),
        ] {
            assert_eq!(seen(class, config.clone(), map.clone()), expected, "{class} {config} {map}");
        }
    }

    #[test]
    fn the_names_of_tokens_are_in_the_order_of_the_files() {
        let config = json!({"pad_token": "</s>", "add_bos_token": true, "bos_token": "<s>", "x_token": null});
        let map = json!({"eos_token": "</s>"});
        let files = TokenFiles { config: &config, special_map: &map, added: &Value::Null, own: BTreeMap::new() };
        let texts = AddedTokens::read(files, TokenizerClass::Llama).unwrap().texts_by_name();
        let texts = serde_json::to_string(&texts).unwrap();
        assert_eq!(texts, r#"{"pad_token":"</s>","bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>"}"#);
    }

    #[test]
    fn special_tokens_are_not_part_of_a_text() {
        let decoded = |special: bool| {
            let decoder = json!({"added_tokens_decoder": {"357": token(json!({"special": special}))}});
            let tokenizer = folder(AS_FILE, decoder, none());
            tokenizer.decode(&tokenizer.encode("cat <|t|>").unwrap()).unwrap()
        };
        assert_eq!((decoded(true).as_str(), decoded(false).as_str()), ("cat ", "cat <|t|>"));
    }

    #[test]
    fn ids_that_differ_from_those_of_transformers_are_warned_of() {
        let moved = folder(AS_FILE, json!({}), ("added_tokens.json", json!({"<|t|>": 364})));
        assert_eq!(moved.warnings(), ["token `<|t|>` has id 357, as in transformers, but a file gives it 364"]);
        let flag = folder(AS_FILE, json!({"add_bos_token": false}), none());
        assert!(flag.adds_bos() && flag.warnings()[0].starts_with("`add_bos_token` in tokenizer_config.json is false"));
        assert!(folder(AS_FILE, json!({"add_bos_token": true}), none()).warnings().is_empty());
    }

    /// Tokens by transformers 5.23's `AutoTokenizer`.
    #[test]
    fn a_class_builds_its_own_pipeline() {
        let texts = ["cat <|t|> cat", " cat", "<s>cat"];
        let all = |class, config| {
            let tokenizer = folder(class, config, none());
            texts.map(|text| encode(&tokenizer, text))
        };
        let tool = "▁cat ▁ < | t | > ▁cat";
        assert_eq!(all(AS_FILE, json!({})), [tool, "▁ ▁cat", "<s> ▁cat"]);
        assert_eq!(all(AS_FILE, json!({"add_prefix_space": false})), [tool, "▁ ▁cat", "<s> ▁cat"]);
        assert_eq!(all(LLAMA, json!({})), [tool, "▁cat", "<s> cat"]);
        assert_eq!(all(LLAMA, json!({"legacy": true})), [tool, "▁cat", "<s> ▁cat"]);
        assert_eq!(all(LLAMA, json!({"add_prefix_space": false})), ["cat ▁ < | t | > ▁cat", "▁cat", "<s> cat"]);
        let added = json!({"added_tokens_decoder": {"357": token(json!({}))}});
        assert_eq!(all(LLAMA, added)[0], "▁cat ▁ <|t|> ▁cat");
        assert_eq!(all(AS_FILE, json!({"split_special_tokens": true})), [tool, "▁ ▁cat", "▁ < s > cat"]);
    }
}
