//! Generated text, cut at the first stop string.

use crate::error::Result;
use lorakit_task::{IncrementalDecoder, Tokenizer};

/// The growing text of one row. A possible beginning of a stop string is held back until the next token decides.
pub(crate) struct StopText<'a> {
    decoder: Option<IncrementalDecoder<'a>>,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` that were emitted.
    emitted: usize,
}

impl<'a> StopText<'a> {
    /// An empty text after the tokens of a prompt.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        StopText { decoder: Some(IncrementalDecoder::new(tokenizer, prompt)), stops, text: String::new(), emitted: 0 }
    }

    /// Adds a token; true if the text has ended.
    pub fn push(&mut self, token: u32) -> Result<bool> {
        match &mut self.decoder {
            None => Ok(true),
            Some(decoder) => {
                let piece = decoder.push(token)?;
                Ok(piece.is_some_and(|piece| self.append(&piece)))
            }
        }
    }

    /// Adds incomplete characters after the last token.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(decoder) = self.decoder.take() {
            let rest = decoder.finish()?;
            self.append(&rest);
        }
        Ok(())
    }

    /// Text that is certain and was not emitted yet.
    pub fn take_certain(&mut self) -> &str {
        let held = if self.decoder.is_some() { self.held() } else { 0 };
        let (from, to) = (self.emitted, self.text.len() - held);
        self.emitted = to;
        &self.text[from..to]
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.text
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
        self.decoder = None;
        true
    }

    /// The length of the longest suffix of the text that begins a stop string.
    fn held(&self) -> usize {
        let begins = |stop: &&String, n: &usize| stop.is_char_boundary(*n) && self.text.ends_with(&stop[..*n]);
        let longest = |stop: &String| (1..stop.len()).rev().find(|n| begins(&stop, n));
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
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
        let mut text = StopText::new(&tokenizer, &[], &stops);
        let mut given = Vec::new();
        for piece in pieces {
            let ended = text.append(piece);
            given.push(text.take_certain().to_string());
            if ended {
                return (given, text.into_text(), true);
            }
        }
        text.finish().unwrap();
        given.push(text.take_certain().to_string());
        (given, text.into_text(), false)
    }

    /// A minimal tokenizer.
    fn tokenizer() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"BPE","vocab":{"a":0,"e":1},"merges":[]}}"#;
        Tokenizer::from_bytes(json.as_bytes(), "e").unwrap()
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
}
