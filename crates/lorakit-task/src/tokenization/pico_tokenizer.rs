//! The tokenizer of the base `pico`: one token per character.

use serde_json::{Map, Value, json};

/// The token of a character that is neither printable ASCII nor a newline.
const UNKNOWN: &str = "<unk>";
/// BOS.
const BOS: &str = "<s>";
/// EOS.
const EOS: &str = "</s>";

/// The `tokenizer.json` of pico: three special tokens, newline and printable ASCII, as BPE without merges, which both the
/// tokenizers crate and transformers read. Texts begin with `<s>`.
pub fn pico_tokenizer() -> Value {
    let special = [UNKNOWN, BOS, EOS].map(String::from);
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
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}}
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": UNKNOWN, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []
        }
    })
}

/// The `tokenizer_config.json` of pico.
pub fn pico_tokenizer_config() -> Value {
    json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": false,
        "eos_token": EOS,
        "model_max_length": 256,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tokenization::tokenizer::Tokenizer;

    #[test]
    fn every_printable_character_is_one_token_and_decodes_to_itself() {
        let tokenizer = Tokenizer::from_bytes(pico_tokenizer().to_string().as_bytes(), EOS).unwrap();
        let text: String = ['\n'].into_iter().chain(' '..='~').collect();
        let tokens = tokenizer.encode(&text).unwrap();
        assert_eq!(tokens, [1].into_iter().chain(3..99).collect::<Vec<u32>>());
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        assert_eq!((tokenizer.size(), tokenizer.eos(), tokenizer.bos()), (99, 2, Some(1)));
        assert_eq!(tokenizer.encode("é").unwrap(), [1, 0]);
    }
}
