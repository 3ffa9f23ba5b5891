//! What a row is to a base: one stream of tokens, or a source and a target.

use std::path::Path;

use serde_json::Value;

use crate::error::{Result, TaskError};

/// How the tokens of a row are divided between an encoder and a decoder. The set is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowLayout {
    /// One stream, which a decoder reads: the answer continues the prompt.
    #[default]
    Stream,
    /// An encoder reads the prompt, with what the tokenizer's post-processor puts around it, as the source; a decoder writes
    /// the answer, the target, after the token `start`. The answer does not continue the prompt's text. As tokens a row is
    /// the source, `start` and the target, and its prompt ends with `start`.
    SourceTarget {
        /// `decoder_start_token_id` of config.json.
        start: u32,
    },
}

impl RowLayout {
    /// How many tokens of a prompt of `prompt` tokens an encoder reads, the first ones: all but the one that the decoder
    /// starts with, or none.
    pub fn source_len(self, prompt: usize) -> usize {
        match self {
            Self::Stream => 0,
            Self::SourceTarget { .. } => prompt.saturating_sub(1),
        }
    }

    /// The fewest tokens of a prompt.
    pub(crate) fn least_prompt(self) -> usize {
        match self {
            Self::Stream => 1,
            Self::SourceTarget { .. } => 2,
        }
    }

    /// The layout of a base by the values of its config.json and generation_config.json, null where absent.
    ///
    /// # Errors
    /// If it is an encoder-decoder that does not say what its decoder starts with.
    pub(crate) fn of_config(config: &Value, generation: &Value, folder: &Path) -> Result<Self> {
        // transformers leaves the flag out where it is the class's default.
        let flag = config["is_encoder_decoder"].as_bool();
        let is_encoder_decoder = flag.unwrap_or(matches!(config["model_type"].as_str(), Some("t5")));
        if !is_encoder_decoder {
            return Ok(Self::Stream);
        }
        let keys =
            [(generation, "decoder_start_token_id"), (config, "decoder_start_token_id"), (config, "pad_token_id")];
        let start = keys.iter().find_map(|(file, key)| file[*key].as_u64()).and_then(|id| u32::try_from(id).ok());
        start.map(|start| Self::SourceTarget { start }).ok_or_else(|| {
            TaskError::SpecialTokens(format!(
                "{}: config.json is of an encoder-decoder, but has no `decoder_start_token_id`, which its answers start with; \
                 add it (0 for T5)",
                folder.display()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn an_encoder_decoder_says_what_its_answers_start_with() {
        let of = |config: Value, generation: Value| RowLayout::of_config(&config, &generation, Path::new("base"));
        let source_target = |start| RowLayout::SourceTarget { start };
        let t5 =
            json!({"model_type": "t5", "is_encoder_decoder": true, "decoder_start_token_id": 3, "pad_token_id": 0});
        assert_eq!(of(t5.clone(), Value::Null).unwrap(), source_target(3));
        assert_eq!(of(t5, json!({"decoder_start_token_id": 4})).unwrap(), source_target(4));
        assert_eq!(of(json!({"model_type": "t5", "pad_token_id": 0}), Value::Null).unwrap(), source_target(0));
        assert_eq!(of(json!({"model_type": "llama"}), Value::Null).unwrap(), RowLayout::Stream);
        assert_eq!(of(json!({"is_encoder_decoder": false}), Value::Null).unwrap(), RowLayout::Stream);
        let error = of(json!({"is_encoder_decoder": true}), Value::Null).unwrap_err().to_string();
        assert!(error.contains("base: config.json is of an encoder-decoder, but has no"), "{error}");
    }
}
