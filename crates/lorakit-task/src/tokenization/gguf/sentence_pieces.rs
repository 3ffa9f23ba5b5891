//! SentencePiece's pieces as a byte-pair encoding, as transformers converts `tokenizer.model`.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::tokenization::gguf::gguf_vocabulary::{GgufVocabulary, TokenType};
use crate::tokenization::tokenizer_class::{llama, piece_decoders};

/// The longest piece in bytes that is merged from others. SentencePiece's own limit is 16 characters.
const LONGEST: usize = 256;

/// The normalizer, pre-tokenizer and decoder of a tokenizer.json. A prefix is put before each part of a text between special
/// tokens, as in llama.cpp and in the files of Mistral and Phi-3.
pub(super) fn pipeline(space_prefix: bool) -> [Value; 3] {
    if !space_prefix {
        return llama(false, false);
    }
    let mut decoders = piece_decoders();
    decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let normalizers = [
        json!({"type": "Prepend", "prepend": "▁"}),
        json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
    ];
    [
        json!({"type": "Sequence", "normalizers": normalizers}),
        Value::Null,
        json!({"type": "Sequence", "decoders": decoders}),
    ]
}

/// Every pair of pieces that make a third, those with the highest score first.
pub(super) fn merges(vocabulary: &GgufVocabulary, scores: &[f32]) -> Vec<(String, String)> {
    let is_piece = |id: usize| vocabulary.types[id] == TokenType::Normal;
    let pieces = vocabulary.tokens.iter().enumerate().filter(|&(id, _)| is_piece(id));
    let ids: HashMap<&str, usize> = pieces.map(|(id, piece)| (piece.as_str(), id)).collect();
    let mut pairs = Vec::new();
    for (id, piece) in
        vocabulary.tokens.iter().enumerate().filter(|&(id, piece)| is_piece(id) && piece.len() <= LONGEST)
    {
        let mut halves: Vec<_> = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at)).enumerate().collect();
        halves.retain(|(_, (first, second))| ids.contains_key(first) && ids.contains_key(second));
        pairs.extend(halves.into_iter().map(|(letters, halves)| (scores[id], letters, halves)));
    }
    // Of two ways to the same piece, the one with the longer first half.
    pairs.sort_by(|(a, letters, _), (b, others, _)| b.total_cmp(a).then(others.cmp(letters)));
    pairs.into_iter().map(|(_, _, (first, second))| (first.to_owned(), second.to_owned())).collect()
}
