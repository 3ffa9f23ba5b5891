//! Text that is being generated, cut at the first stop text.

use anyhow::Result;
use lorakit_task::{IncrementalDecoder, Tokenizer};

/// The text of one row as it grows. What might be the beginning of a stop text is held back until it is clear.
pub(crate) struct StopText<'a> {
    stream: Option<IncrementalDecoder<'a>>,
    stops: &'a [String],
    text: String,
    /// How much of `text` was given out.
    given: usize,
}

impl<'a> StopText<'a> {
    /// No text yet, after the tokens of a prompt.
    pub fn new(vocabulary: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        StopText { stream: Some(IncrementalDecoder::new(vocabulary, prompt)), stops, text: String::new(), given: 0 }
    }

    /// Takes a token; true where the text has ended.
    pub fn push(&mut self, token: u32) -> Result<bool> {
        match &mut self.stream {
            None => Ok(true),
            Some(stream) => {
                let piece = stream.push(token)?;
                Ok(piece.is_some_and(|piece| self.append(&piece)))
            }
        }
    }

    /// Takes what half characters are left once no token follows.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(stream) = self.stream.take() {
            let rest = stream.finish()?;
            self.append(&rest);
        }
        Ok(())
    }

    /// What may be given out and has not been.
    pub fn fresh(&mut self) -> &str {
        let held = if self.stream.is_some() { self.held() } else { 0 };
        let (from, to) = (self.given, self.text.len() - held);
        self.given = to;
        &self.text[from..to]
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Appends a piece and cuts the text at the first stop text, if it now holds one.
    fn append(&mut self, piece: &str) -> bool {
        let before = self.text.len();
        self.text.push_str(piece);
        // A stop text that ends within the new piece begins at most its own length before it.
        let found = |stop: &String| {
            let earliest = before.saturating_sub(stop.len());
            let from = (earliest..=before).find(|&at| self.text.is_char_boundary(at))?;
            self.text[from..].find(stop).map(|at| from + at)
        };
        let Some(end) = self.stops.iter().filter_map(found).min() else { return false };
        self.text.truncate(end);
        self.stream = None;
        true
    }

    /// The length of the longest end of the text that begins a stop text.
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

    /// A text without a tokenizer, from pieces.
    fn pieces(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let vocabulary = vocabulary();
        let mut text = StopText::new(&vocabulary, &[], &stops);
        let mut given = Vec::new();
        for piece in pieces {
            let ended = text.append(piece);
            given.push(text.fresh().to_string());
            if ended {
                return (given, text.into_text(), true);
            }
        }
        text.finish().unwrap();
        given.push(text.fresh().to_string());
        (given, text.into_text(), false)
    }

    /// The smallest tokenizer: every letter of `letters` is a token.
    fn vocabulary() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"BPE","vocab":{"a":0,"e":1},"merges":[]}}"#;
        Tokenizer::from_bytes(json.as_bytes(), "e").unwrap()
    }

    #[test]
    fn text_is_cut_before_the_first_stop_text() {
        let (given, text, ended) = pieces(&["\n\n", "END"], &["one", " EN", "D two", "\n\n"]);
        assert_eq!((given.concat().as_str(), text.as_str(), ended), ("one ", "one ", true));
        let (_, text, _) = pieces(&["c", "bcd"], &["abcd"]);
        assert_eq!(text, "a", "the earliest of several, whatever their order");
    }

    #[test]
    fn what_may_begin_a_stop_text_is_held_back_until_it_is_clear() {
        let (given, text, ended) = pieces(&["\n\n"], &["a\n", "b", "\n"]);
        assert_eq!(given, ["a", "\nb", "", "\n"]);
        assert_eq!((text.as_str(), ended), ("a\nb\n", false));
        let (given, _, ended) = pieces(&["né!"], &["é n", "é", "?"]);
        assert_eq!((given.concat().as_str(), ended), ("é né?", false));
    }
}
