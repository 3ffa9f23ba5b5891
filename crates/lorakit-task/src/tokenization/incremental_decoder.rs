//! Decodes generated tokens one at a time.

use tokenizers::decoders::DecoderWrapper;

use crate::common_prefix::common_prefix;
use crate::error::Result;
use crate::tokenization::byte_run::{ByteRun, byte_of};
use crate::tokenization::tokenizer::Tokenizer;

/// How many tokens are decoded before a new one: of one byte each they hold three of a character that began before them, and
/// three of an incomplete one at their end.
const CONTEXT: usize = 6;
/// A window of more tokens is shortened to its context.
const WINDOW: usize = 2 * CONTEXT;

/// Turns generated tokens into text as they arrive.
///
/// The text is the decoding of prompt and tokens together, after the longest prefix, in whole characters, that it shares
/// with the decoding of the prompt. A token alone cannot be decoded: a character may span several tokens, a run of byte
/// tokens is only decoded as a whole, and a SentencePiece decoder drops the space at the start of its input. So each token
/// is decoded together with those before it, and text is returned once no further token can change it.
#[derive(Debug)]
pub struct IncrementalDecoder<'v> {
    tokenizer: &'v Tokenizer,
    bytes: ByteTokens,
    /// The last tokens, without special ones, from the start of a character or of a run of byte tokens.
    window: Vec<u32>,
    /// What the window's prompt tokens decode to, until there is text after it.
    prompt: Option<String>,
    /// Bytes of the window's text that were returned or are the prompt's.
    given: usize,
    /// The byte tokens at the end of the window.
    run: ByteRun,
    #[cfg(test)]
    decoded: usize,
}

/// How a tokenizer spells characters that span several tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteTokens {
    /// It has no such characters.
    None,
    /// Every token is bytes (byte-level BPE). Text ends in U+FFFD while a character is incomplete.
    Level,
    /// Some tokens are one byte, such as `<0xE3>` (SentencePiece). An invalid byte makes U+FFFD of all bytes of its run.
    Fallback,
}

impl ByteTokens {
    fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteFallback(_)) => Self::Fallback,
            Some(DecoderWrapper::ByteLevel(_)) => Self::Level,
            Some(DecoderWrapper::Sequence(sequence)) => {
                let parts = sequence.get_decoders().iter().map(|part| Self::of(Some(part)));
                parts.into_iter().find(|&part| part != Self::None).unwrap_or(Self::None)
            }
            _ => Self::None,
        }
    }
}

impl<'v> IncrementalDecoder<'v> {
    /// A decoder of the tokens after a prompt, whose text they continue; what an encoder read, they do not.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn new(tokenizer: &'v Tokenizer, prompt: &[u32]) -> Result<Self> {
        let bytes = ByteTokens::of(tokenizer.decoder());
        let mut decoder = IncrementalDecoder {
            tokenizer,
            bytes,
            window: Vec::new(),
            prompt: None,
            given: 0,
            run: ByteRun::default(),
            #[cfg(test)]
            decoded: 0,
        };
        let prompt = &prompt[tokenizer.layout().source_len(prompt.len())..];
        for &token in prompt.iter().rev().filter(|&&token| !tokenizer.is_skipped(token)) {
            decoder.window.push(token);
            if decoder.window.len() >= CONTEXT && decoder.byte(token).is_none() {
                break;
            }
        }
        decoder.window.reverse();
        let run = decoder.window.iter().rev().map_while(|&token| decoder.byte(token));
        decoder.run = ByteRun::of_prompt(run.collect::<Vec<u8>>().into_iter().rev());
        decoder.prompt = Some(decoder.decode(0)?);
        Ok(decoder)
    }

    /// Adds a token and returns newly stable text, if any.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        if self.tokenizer.is_skipped(token) {
            return Ok(None);
        }
        self.window.push(token);
        if let Some(byte) = self.byte(token) {
            self.run.push(byte);
            return Ok(None);
        }
        self.run = ByteRun::default();
        let text = self.decode(0)?;
        let incomplete = self.bytes == ByteTokens::Level && text.ends_with(char::REPLACEMENT_CHARACTER);
        let certain = text.len() - if incomplete { char::REPLACEMENT_CHARACTER.len_utf8() } else { 0 };
        let piece = self.take(&text, certain);
        if self.window.len() > WINDOW && self.prompt.is_none() {
            self.shorten(text.len() - self.given)?;
        }
        Ok(piece)
    }

    /// The text of byte tokens that a following token may change, if they are whole characters so far.
    pub fn held(&self) -> Option<&str> {
        self.run.text()
    }

    /// The rest of the text when no token follows, incomplete characters as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let text = self.decode(0)?;
        Ok(self.take(&text, text.len()).unwrap_or_default())
    }

    /// The part of the window's text up to `certain` that was not returned yet.
    fn take(&mut self, text: &str, certain: usize) -> Option<String> {
        if let Some(prompt) = &self.prompt {
            self.given = common_prefix(prompt, &text[..certain]);
            if self.given < certain {
                self.prompt = None;
            }
        }
        let piece = text.get(self.given..certain).filter(|piece| !piece.is_empty()).map(str::to_string);
        self.given = self.given.max(certain);
        piece
    }

    /// Shortens the window to its context, where the last `rest` bytes of its text were not returned yet.
    fn shorten(&mut self, rest: usize) -> Result<()> {
        let earliest = self.window.len() - CONTEXT;
        // The last token is no byte token.
        let start = (earliest..self.window.len()).find(|&at| self.byte(self.window[at]).is_none()).unwrap_or(earliest);
        let text = self.decode(start)?;
        if let Some(given) = text.len().checked_sub(rest) {
            self.window.drain(..start);
            self.given = given;
        }
        Ok(())
    }

    /// The byte of a byte token.
    fn byte(&self, token: u32) -> Option<u8> {
        match self.bytes {
            ByteTokens::Fallback => byte_of(&self.tokenizer.token(token)?),
            ByteTokens::None | ByteTokens::Level => None,
        }
    }

    /// The text of the window from a token on.
    fn decode(&mut self, start: usize) -> Result<String> {
        let tokens = &self.window[start..];
        #[cfg(test)]
        {
            self.decoded += tokens.len();
        }
        // Some decoders expect a token.
        if tokens.is_empty() { Ok(String::new()) } else { self.tokenizer.decode(tokens) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tokenization::tokenizer::tests::tiny;
    use lorakit_format::rng::Key;
    use serde_json::{Map, Value, json};
    use std::path::Path;

    /// The text as it is defined.
    fn whole(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> String {
        let (before, all) = (tokenizer.decode(prompt).unwrap(), tokenizer.decode(&[prompt, tokens].concat()).unwrap());
        all[common_prefix(&before, &all)..].to_string()
    }

    /// The text in pieces, and how many tokens were decoded for it.
    fn streamed(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> (Vec<String>, usize) {
        let mut decoder = IncrementalDecoder::new(tokenizer, prompt).unwrap();
        let mut pieces = Vec::new();
        for (i, &token) in tokens.iter().enumerate() {
            pieces.extend(decoder.push(token).unwrap());
            // The comparison itself decodes everything.
            if decoder.bytes == ByteTokens::Fallback
                && tokens.len() < 500
                && let Some(held) = decoder.held()
            {
                assert_eq!(pieces.concat() + held, whole(tokenizer, prompt, &tokens[..=i]));
            }
        }
        let decoded = decoder.decoded;
        pieces.push(decoder.finish().unwrap());
        (pieces, decoded)
    }

    fn assert_streams(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) {
        let (pieces, decoded) = streamed(tokenizer, prompt, tokens);
        assert_eq!(pieces.concat(), whole(tokenizer, prompt, tokens), "{prompt:?} {tokens:?}");
        let most = 2 * prompt.len() + 2 * WINDOW * tokens.len();
        assert!(decoded <= most, "{decoded} tokens were decoded for {} after {}", tokens.len(), prompt.len());
    }

    /// Texts, random tokens and repeated ones, each divided at a random place into prompt and answer.
    fn assert_streams_anything(tokenizer: &Tokenizer, seed: u64) {
        let text = "a cat né 日日\n葛む 😀😀 cat: cat\u{300} ␀ Ünïcödé — 「東京」 cat cat";
        let text = tokenizer.encode(text).unwrap();
        for trial in 0..400 {
            let mut random = Key::new(seed, "tokens").number(trial).stream();
            let mut below = |n| random.below(n);
            let mut tokens = Vec::new();
            for _ in 0..1 + below(4) {
                match below(4) {
                    0 => tokens.extend((0..below(40)).map(|_| below(tokenizer.size()) as u32)),
                    1 => tokens.extend(vec![below(tokenizer.size()) as u32; below(60)]),
                    _ => {
                        let start = below(text.len());
                        tokens.extend(&text[start..start + below(text.len() - start + 1)]);
                    }
                }
            }
            let (prompt, answer) = tokens.split_at(below(tokens.len() + 1));
            assert_streams(tokenizer, prompt, answer);
        }
    }

    /// A tokenizer without merges.
    fn of_vocabulary(vocabulary: Vec<String>, decoder: Value) -> Tokenizer {
        let tokens = vocabulary.into_iter().chain(["</s>".to_string()]).enumerate();
        let vocabulary: Map<String, Value> = tokens.map(|(id, token)| (token, json!(id))).collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": vocabulary["</s>"], "content": "</s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
            "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
        });
        Tokenizer::from_bytes(json.to_string().as_bytes(), "</s>").unwrap()
    }

    /// Like GPT-2's: every byte, spelled as a printable character, and some tokens of several bytes, which begin or end
    /// inside characters.
    fn byte_level() -> Tokenizer {
        let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
        let mut others = (0x100..).filter_map(char::from_u32);
        let mut spell = |byte: u8| if printable(&byte) { char::from(byte) } else { others.next().unwrap() };
        let bytes: Vec<char> = (0..=255).map(&mut spell).collect();
        let several = ["é", " cat", "日日\n", "葛", "\u{1F600}"].map(|text| text.bytes().collect::<Vec<u8>>());
        let parts = several.iter().flat_map(|text| [&text[..], &text[1..], &text[..text.len() - 1]]);
        let parts = parts.map(|part| part.iter().map(|&byte| bytes[usize::from(byte)]).collect::<String>());
        let mut vocabulary: Vec<String> = bytes.iter().map(char::to_string).chain(parts).collect();
        let mut seen = std::collections::BTreeSet::new();
        vocabulary.retain(|token| seen.insert(token.clone()));
        of_vocabulary(vocabulary, json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}))
    }

    fn words(tokens: &[&str], decoder: Value) -> Tokenizer {
        of_vocabulary(tokens.iter().map(|token| token.to_string()).collect(), decoder)
    }

    #[test]
    fn pieces_are_the_text_for_every_kind_of_tokenizer() {
        assert_streams_anything(&tiny(), 0);
        assert_streams_anything(&byte_level(), 1);
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        assert_streams_anything(&words(&["a", "▁a", "▁", "▁▁", "▁cat", "é", "\u{fffd}"], metaspace), 2);
        let wordpiece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        assert_streams_anything(&words(&["a", "##t", "cat", ".", "'s", "##é", "\u{fffd}"], wordpiece), 3);
        let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
        assert_streams_anything(&words(&["a", "cat</w>", "é", "</w>"], suffix), 4);
        assert_streams_anything(&words(&["a", "cat", "é"], Value::Null), 5);
    }

    #[test]
    fn a_long_run_of_one_token_costs_no_more_per_token() {
        for (tokenizer, token) in [(tiny(), "<0xFF>"), (tiny(), "<0x61>"), (byte_level(), "ÿ"), (byte_level(), "Ł")] {
            let tokens = vec![tokenizer.id(token).unwrap(); 5000];
            assert_streams(&tokenizer, &tokens[..7], &tokens);
        }
    }

    #[test]
    fn characters_are_whole_and_the_first_may_have_begun_in_the_prompt() {
        let tiny = tiny();
        let (prompt, text) = ("a cat:", " cat né 😀 cat");
        let tokens = tiny.encode(prompt).unwrap();
        let answer = tiny.encode_after(prompt, &tokens, text).unwrap();
        let (pieces, _) = streamed(&tiny, &tokens, &answer);
        assert_eq!((pieces[0].as_str(), pieces.concat().as_str()), (" cat", text));
        let (begun, rest) = answer.split_at(answer.len() - 3);
        assert_eq!(streamed(&tiny, &[&tokens, begun].concat(), rest).0.concat(), "😀 cat");
    }

    #[test]
    fn an_invalid_byte_leaves_the_next_word() {
        let tiny = tiny();
        let id = |token| tiny.id(token).unwrap();
        let prompt = tiny.encode("a\n").unwrap();
        let tokens = [id("<0xC3>"), id("<0xFF>"), id("▁cat"), id("<0xC3>")];
        // The newline is a byte of the same run.
        let text = "\u{fffd}\u{fffd}\u{fffd} cat\u{fffd}";
        assert_eq!(streamed(&tiny, &prompt, &tokens).0.concat(), text);
        assert_eq!(streamed(&tiny, &tiny.encode("a").unwrap(), &tokens).0.concat(), &text[3..]);
    }

    #[test]
    fn after_bos_the_text_begins_without_a_space() {
        let tiny = tiny();
        let cat = tiny.id("▁cat").unwrap();
        assert_eq!(streamed(&tiny, &[1], &[cat, cat]).0, ["cat", " cat", ""]);
    }

    #[test]
    #[ignore = "needs ../shared"]
    fn pieces_are_the_text_for_published_tokenizers() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/models");
        for (seed, folder) in ["stories260K-hf", "smollm2-135m-instruct"].iter().enumerate() {
            assert_streams_anything(&Tokenizer::open(&models.join(folder)).unwrap(), 10 + seed as u64);
        }
    }
}
