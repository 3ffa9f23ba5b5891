//! Generated text, cut at the first stop string.

use std::ops::Range;

use crate::error::Result;
use lorakit_task::{IncrementalDecoder, Tokenizer};

/// The growing text of one row. A possible beginning of a stop string is held back until the next token decides.
pub(crate) struct StopText<'a> {
    tokenizer: &'a Tokenizer,
    decoder: Option<IncrementalDecoder<'a>>,
    stops: &'a [String],
    /// The text, and among it those special tokens that a stop string contains.
    text: String,
    /// Where the special tokens are. They are not emitted.
    special: Vec<Range<usize>>,
    /// Bytes of `text` that were emitted.
    emitted: usize,
}

impl<'a> StopText<'a> {
    /// An empty text after the tokens of a prompt.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Result<Self> {
        let decoder = Some(IncrementalDecoder::new(tokenizer, prompt)?);
        Ok(StopText { tokenizer, decoder, stops, text: String::new(), special: Vec::new(), emitted: 0 })
    }

    /// Adds a token; true if the text has ended.
    pub fn push(&mut self, token: u32) -> Result<bool> {
        if self.tokenizer.is_special(token) {
            return self.push_special(&self.tokenizer.token(token).unwrap_or_default());
        }
        let Some(decoder) = &mut self.decoder else { return Ok(true) };
        if let Some(piece) = decoder.push(token)?
            && self.append(&piece)
        {
            return Ok(true);
        }
        // The next token may change what the decoder holds, but none follows a stop string.
        let stopped = self.held_by_decoder().is_some_and(|held| self.would_stop(held));
        if stopped {
            self.finish()?;
        }
        Ok(stopped)
    }

    /// Adds incomplete characters after the last token.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(decoder) = self.decoder.take() {
            let rest = decoder.finish()?;
            self.append(&rest);
        }
        Ok(())
    }

    /// Stable text that was not emitted yet.
    pub fn take_stable(&mut self) -> String {
        let held = if self.decoder.is_some() { self.held() } else { 0 };
        let range = self.emitted..self.text.len() - held;
        self.emitted = range.end;
        self.without_special(range)
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.without_special(0..self.text.len())
    }

    /// Adds a special token, which is no text but may be in a stop string.
    fn push_special(&mut self, token: &str) -> Result<bool> {
        if !self.stops.iter().any(|stop| stop.contains(token)) {
            return Ok(false);
        }
        let held = self.held_by_decoder().unwrap_or_default();
        if self.would_stop(&format!("{held}{token}")) {
            self.finish()?;
        }
        self.special.push(self.text.len()..self.text.len() + token.len());
        Ok(self.append(token))
    }

    fn held_by_decoder(&self) -> Option<&str> {
        self.decoder.as_ref().and_then(IncrementalDecoder::held)
    }

    /// Whether the text followed by `piece` ends with a stop string.
    fn would_stop(&self, piece: &str) -> bool {
        let ends = |stop: &String| match stop.strip_suffix(piece) {
            Some(before) => self.text.ends_with(before),
            None => piece.ends_with(stop.as_str()),
        };
        !piece.is_empty() && self.stops.iter().any(ends)
    }

    /// Appends a piece; true if the text now contains a stop string, at which it is cut.
    fn append(&mut self, piece: &str) -> bool {
        let before = self.text.len();
        self.text.push_str(piece);
        // A stop string that ends within the new piece begins at most its own length before it.
        let found = |stop: &String| {
            let earliest = before.saturating_sub(stop.len());
            let from = (earliest..=before).find(|&at| self.text.is_char_boundary(at))?;
            self.text[from..].find(stop).map(|at| from + at)
        };
        let Some(end) = self.stops.iter().filter_map(found).min() else { return false };
        self.text.truncate(end);
        self.special.retain(|token| token.end <= end);
        self.decoder = None;
        true
    }

    /// The length of the longest suffix of the text that begins a stop string.
    fn held(&self) -> usize {
        let begins = |stop: &&String, n: &usize| stop.is_char_boundary(*n) && self.text.ends_with(&stop[..*n]);
        let longest = |stop: &String| (1..stop.len()).rev().find(|n| begins(&stop, n));
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }

    /// A part of the text without special tokens.
    fn without_special(&self, range: Range<usize>) -> String {
        let mut text = String::new();
        let mut from = range.start;
        for token in self.special.iter().filter(|token| token.start >= range.start && token.end <= range.end) {
            text.push_str(&self.text[from..token.start]);
            from = token.end;
        }
        text + &self.text[from..range.end]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Appends pieces; returns what is emitted after each, the text, and whether it ended.
    fn pieces(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let tokenizer = tokenizer();
        let mut text = StopText::new(&tokenizer, &[], &stops).unwrap();
        let mut given = Vec::new();
        for piece in pieces {
            let ended = text.append(piece);
            given.push(text.take_stable());
            if ended {
                return (given, text.into_text(), true);
            }
        }
        text.finish().unwrap();
        given.push(text.take_stable());
        (given, text.into_text(), false)
    }

    /// A tokenizer of the tokens `e`, `<end>` (special), `<0x0A>`, `<0xC3>` and `user`, in this order.
    fn tokenizer() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":1,"content":"<end>",
            "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
            "normalizer":null,"pre_tokenizer":null,"post_processor":null,
            "decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]},
            "model":{"type":"WordLevel","unk_token":"e",
            "vocab":{"e":0,"<end>":1,"<0x0A>":2,"<0xC3>":3,"user":4}}}"#;
        Tokenizer::from_bytes(json.as_bytes(), "e").unwrap()
    }

    /// Pushes tokens until the text ends; returns the emitted text, the text, and the number of tokens.
    fn tokens(stops: &[&str], tokens: &[u32]) -> (String, String, usize) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let tokenizer = tokenizer();
        let mut text = StopText::new(&tokenizer, &[0], &stops).unwrap();
        let mut emitted = String::new();
        for (i, &token) in tokens.iter().enumerate() {
            let ended = text.push(token).unwrap();
            emitted += &text.take_stable();
            if ended {
                return (emitted, text.into_text(), i + 1);
            }
        }
        text.finish().unwrap();
        (emitted + &text.take_stable(), text.into_text(), tokens.len())
    }

    fn both(text: &str, count: usize) -> (String, String, usize) {
        (text.into(), text.into(), count)
    }

    #[test]
    fn text_is_cut_before_the_first_stop_string() {
        let (given, text, ended) = pieces(&["\n\n", "END"], &["one", " EN", "D two", "\n\n"]);
        assert_eq!((given.concat().as_str(), text.as_str(), ended), ("one ", "one ", true));
        let (_, text, _) = pieces(&["c", "bcd"], &["abcd"]);
        assert_eq!(text, "a", "the earliest of several");
    }

    #[test]
    fn a_possible_stop_string_is_held_back_until_it_is_decided() {
        let (given, text, ended) = pieces(&["\n\n"], &["a\n", "b", "\n"]);
        assert_eq!(given, ["a", "\nb", "", "\n"]);
        assert_eq!((text.as_str(), ended), ("a\nb\n", false));
        let (given, _, ended) = pieces(&["né!"], &["é n", "é", "?"]);
        assert_eq!((given.concat().as_str(), ended), ("é né?", false));
    }

    #[test]
    fn a_stop_string_may_be_or_contain_a_special_token() {
        assert_eq!(tokens(&["<end>"], &[4, 1, 4]), both("user", 2));
        assert_eq!(tokens(&["user<end>"], &[0, 4, 1, 4]), both("e", 3));
        assert_eq!(tokens(&["<end>user"], &[0, 1, 0, 1, 4, 0]), both("ee", 5));
        assert_eq!(tokens(&["user"], &[0, 1, 0]), both("ee", 3), "special tokens are no text");
        assert_eq!(tokens(&["<end>"], &[4, 2, 3, 1, 4]), both("user\u{fffd}\u{fffd}", 4));
    }

    #[test]
    fn a_stop_string_of_byte_tokens_ends_the_text_at_once() {
        assert_eq!(tokens(&["\n"], &[4, 2, 2, 0]), both("user", 2));
        assert_eq!(tokens(&["e\n\n"], &[4, 0, 2, 2, 0]), both("user", 4));
        assert_eq!(
            tokens(&["\n"], &[4, 3, 2, 4]),
            both("user\u{fffd}\u{fffd}user", 4),
            "in an invalid run it is no newline"
        );
    }
}
