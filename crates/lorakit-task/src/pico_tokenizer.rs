//! The tokenizer of the base `pico`: one token per character.

use serde_json::{Map, Value, json};

/// What stands for a character that is not printable ASCII or a newline.
const UNKNOWN: &str = "<unk>";
/// What begins every text.
const BEGIN: &str = "<s>";
/// What ends every text.
const END: &str = "</s>";

/// `tokenizer.json` of pico: the three special tokens, newline, and printable ASCII, as BPE without merges, which both
/// the tokenizers crate and transformers read. Texts begin with `<s>`.
pub fn pico_tokenizer() -> Value {
    let special = [UNKNOWN, BEGIN, END].map(String::from);
    let characters = ['\n'].into_iter().chain(' '..='~').map(String::from);
    let vocabulary: Map<String, Value> =
        special.iter().cloned().chain(characters).enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added = special.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [1], "tokens": [BEGIN]}}
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": UNKNOWN, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []
        }
    })
}

/// `tokenizer_config.json` of pico.
pub fn pico_tokenizer_config() -> Value {
    json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": false,
        "eos_token": END,
        "model_max_length": 256,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Vocabulary;

    #[test]
    fn every_printable_character_is_one_token_and_comes_back() {
        let vocabulary = Vocabulary::from_bytes(pico_tokenizer().to_string().as_bytes(), END).unwrap();
        let text: String = ['\n'].into_iter().chain(' '..='~').collect();
        let tokens = vocabulary.encode(&text).unwrap();
        assert_eq!(tokens, [1].into_iter().chain(3..99).collect::<Vec<u32>>());
        assert_eq!(vocabulary.decode(&tokens).unwrap(), text);
        assert_eq!((vocabulary.size(), vocabulary.eos(), vocabulary.bos()), (99, 2, Some(1)));
        assert_eq!(vocabulary.encode("é").unwrap(), [1, 0]);
    }
}
