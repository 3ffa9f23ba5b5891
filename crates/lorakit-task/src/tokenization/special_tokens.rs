//! BOS, EOS and stop tokens, from the files beside a `tokenizer.json`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer as HubTokenizer;

use crate::error::{At, Result, TaskError};
use crate::optional_json::read_json;

/// The special tokens of a model.
pub(crate) struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: u32,
    /// The tokens at which generation stops, `eos` among them.
    pub stops: BTreeSet<u32>,
}

/// The files that may name special tokens, with the keys of BOS and EOS. The first that names EOS decides what ends a
/// target; transformers appends the tokenizer's too. Generation stops at the tokenizer's and at the model's, for which
/// transformers reads `generation_config.json`, and `config.json` only without it.
const FILES: [(&str, &str, &str); 4] = [
    ("tokenizer_config.json", "bos_token", "eos_token"),
    ("special_tokens_map.json", "bos_token", "eos_token"),
    (GENERATION_CONFIG, "bos_token_id", "eos_token_id"),
    (CONFIG, "bos_token_id", "eos_token_id"),
];
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

/// The files in their order of precedence. As in transformers, special_tokens_map.json precedes tokenizer_config.json where
/// that has no `added_tokens_decoder`: then it is of an older version, which kept special tokens in both.
fn files(tokenizer_config: Option<&Value>) -> [(&'static str, &'static str, &'static str); 4] {
    let mut files = FILES;
    if tokenizer_config.is_none_or(|config| config.get("added_tokens_decoder").is_none()) {
        files.swap(0, 1);
    }
    files
}

/// Reads the special tokens of a model folder.
pub(crate) fn read(folder: &Path, tokenizer: &HubTokenizer) -> Result<SpecialTokens> {
    let (mut bos, mut eos, mut stops) = (None, None, BTreeSet::new());
    let tokenizer_config = read_json(&folder.join("tokenizer_config.json"))?;
    let (mut decided, mut vocabulary) = (false, None);
    for (file, bos_key, eos_key) in files(tokenizer_config.as_ref()) {
        let Some(config) = read_json(&folder.join(file))? else { continue };
        let ids = |key: &str| ids(&config[key], tokenizer).at(|| format!("`{key}` in {}", folder.join(file).display()));
        vocabulary = vocabulary.or(config["vocab_size"].as_u64());
        bos = bos.or(ids(bos_key)?.first().copied());
        let ends = if file == CONFIG && decided { Vec::new() } else { ids(eos_key)? };
        decided |= file == GENERATION_CONFIG && !ends.is_empty();
        eos = eos.or(ends.first().copied());
        stops.extend(ends);
    }
    let Some(eos) = eos else {
        return Err(TaskError::SpecialTokens(format!(
            "no EOS token is known for {}: give `eos_token` in tokenizer_config.json or `eos_token_id` in config.json. \
             Targets end with it, and generation stops at it",
            folder.display()
        )));
    };
    if let Some(size) = vocabulary.filter(|&size| u64::from(eos) >= size) {
        let text = tokenizer.id_to_token(eos).unwrap_or_default();
        return Err(TaskError::SpecialTokens(format!(
            "the EOS token `{text}` would be token {eos}, but the model of {} has {size} tokens (`vocab_size` in config.json): \
             give an `eos_token` that it has in tokenizer_config.json",
            folder.display()
        )));
    }
    Ok(SpecialTokens { bos, eos, stops })
}

/// The ids that a value names: a token's text, `{"content": text}`, an id, or a list of ids.
fn ids(value: &Value, tokenizer: &HubTokenizer) -> Result<Vec<u32>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => {
            let id = tokenizer.token_to_id(text);
            Ok(vec![id.ok_or_else(|| TaskError::SpecialTokens(format!("the tokenizer has no token `{text}`")))?])
        }
        Value::Object(token) => ids(token.get("content").unwrap_or(&Value::Null), tokenizer),
        Value::Array(values) => {
            let nested: Result<Vec<_>> = values.iter().map(|value| ids(value, tokenizer)).collect();
            Ok(nested?.concat())
        }
        number => {
            let id = number.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.filter(|&id| tokenizer.id_to_token(id).is_some());
            Ok(vec![id.ok_or_else(|| TaskError::SpecialTokens(format!("{number} is not the id of a token")))?])
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::error::Result;
    use crate::tokenization::tokenizer::Tokenizer;
    use crate::tokenization::tokenizer::tests::tiny_json;

    /// The tokenizer of a folder with these files beside `tiny_json`.
    pub(crate) fn open(files: &[(&str, &str)]) -> Result<Tokenizer> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), tiny_json().to_string()).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Tokenizer::open(folder.path())
    }

    #[test]
    fn eos_is_read_from_any_of_the_files_the_tokenizers_own_first() {
        for (file, text) in [
            ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#),
            ("tokenizer_config.json", r#"{"eos_token": {"content": "</s>", "lstrip": false}}"#),
            ("special_tokens_map.json", r#"{"eos_token": "</s>"}"#),
            ("config.json", r#"{"eos_token_id": 2}"#),
            ("generation_config.json", r#"{"eos_token_id": [2, 0]}"#),
        ] {
            assert_eq!(open(&[(file, text)]).unwrap().eos(), 2, "{file}");
        }
        let both = open(&[
            ("generation_config.json", r#"{"eos_token_id": [0, 2]}"#),
            ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#),
        ]);
        let both = both.unwrap();
        assert_eq!((both.eos(), both.stop_tokens()), (2, &[0, 2][..]));
    }

    #[test]
    fn generation_config_decides_where_it_differs_from_config() {
        let stops = |files: &[_]| open(files).unwrap().stop_tokens().to_vec();
        let config = ("config.json", r#"{"eos_token_id": 5}"#);
        let tokenizer = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
        let generation = ("generation_config.json", r#"{"eos_token_id": [7, 9]}"#);
        assert_eq!(stops(&[config, tokenizer, generation]), [2, 7, 9]);
        assert_eq!(stops(&[config, tokenizer]), [2, 5]);
        assert_eq!(stops(&[config, tokenizer, ("generation_config.json", "{}")]), [2, 5]);
        let model = open(&[config, generation]).unwrap();
        assert_eq!((model.eos(), model.stop_tokens()), (7, &[7, 9][..]));
    }

    #[test]
    fn numbers_that_only_python_reads_are_as_if_absent() {
        let files = [("config.json", r#"{"time_step_limit": [0.0, Infinity], "eos_token_id": 2}"#)];
        let generation = ("generation_config.json", r#"{"eos_token_id": [2, 0], "temperature": NaN}"#);
        let tokenizer = ("tokenizer_config.json", r#"{"model_max_length": Infinity, "chat_template": "{{ 'NaN' }}"}"#);
        let tokenizer = open(&[files[0], generation, tokenizer]).unwrap();
        assert_eq!((tokenizer.eos(), tokenizer.stop_tokens()), (2, &[0, 2][..]));
        assert!(tokenizer.has_chat_template());
    }

    #[test]
    fn a_folder_without_eos_is_refused() {
        let message = |files: &[_]| format!("{:#}", anyhow::Error::from(open(files).unwrap_err()));
        assert!(message(&[]).contains("no EOS token is known"));
        assert!(message(&[("config.json", r#"{"eos_token_id": null}"#)]).contains("no EOS"));
        let unknown = message(&[("config.json", r#"{"eos_token_id": 99999}"#)]);
        assert!(unknown.contains("config.json: 99999 is not the id"), "{unknown}");
        assert!(message(&[("config.json", "{")]).contains("not JSON"));
    }

    #[test]
    fn an_eos_that_the_model_lacks_is_refused() {
        let added = [("tokenizer_config.json", r#"{"eos_token": "<end>"}"#), ("config.json", r#"{"vocab_size": 357}"#)];
        let message = format!("{:#}", anyhow::Error::from(open(&added).unwrap_err()));
        assert!(message.contains("EOS token `<end>` would be token 357, but the model"), "{message}");
        assert_eq!(open(&[added[0], ("config.json", r#"{"vocab_size": 358}"#)]).unwrap().eos(), 357);
    }
}
