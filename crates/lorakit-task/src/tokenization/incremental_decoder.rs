//! Decodes generated tokens one at a time.

use crate::error::Result;
use crate::tokenization::tokenizer::Tokenizer;

/// How many tokens before a token are decoded with it: enough for the longest character in byte tokens, and for a space
/// that depends on what comes before.
const CONTEXT: usize = 6;

/// Turns generated tokens into text as they arrive.
///
/// A token alone cannot be decoded: a character may span several byte tokens, and a SentencePiece decoder drops the space
/// at the start of its input. So each token is decoded together with the tokens before it, and only the new text is
/// returned.
#[derive(Debug)]
pub struct IncrementalDecoder<'v> {
    tokenizer: &'v Tokenizer,
    tokens: Vec<u32>,
    /// Where the context of the next token begins.
    context: usize,
    /// Where the tokens begin whose text was not returned yet.
    pending: usize,
}

impl<'v> IncrementalDecoder<'v> {
    /// A decoder of the tokens after a prompt.
    pub fn new(tokenizer: &'v Tokenizer, prompt: &[u32]) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let pending = tokens.len();
        IncrementalDecoder { tokenizer, tokens, context: 0, pending }
    }

    /// Adds a token and returns the text that it completes; None while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        self.tokens.push(token);
        let (before, all) = self.decode()?;
        // A replacement character at the end is most likely an incomplete character.
        if all.len() <= before.len() || all.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let text = all.get(before.len()..).map(str::to_string);
        self.context = self.pending;
        self.pending = self.tokens.len();
        Ok(text)
    }

    /// The rest of the text when no token follows: incomplete characters, as replacement characters.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let (before, all) = self.decode()?;
        Ok(all.get(before.len()..).unwrap_or_default().to_string())
    }

    fn decode(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.tokens[self.context..self.pending])?;
        Ok((before, self.tokenizer.decode(&self.tokens[self.context..])?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tokenization::tokenizer::tests::tiny;

    #[test]
    fn the_parts_make_up_the_text_and_characters_are_whole() {
        let tiny = tiny();
        let (prompt, text) = ("a cat:", " cat né 😀 cat");
        let tokens = tiny.encode(prompt).unwrap();
        let mut decoder = IncrementalDecoder::new(&tiny, &tokens);
        let mut parts = Vec::new();
        for id in tiny.encode_after(prompt, &tokens, text).unwrap() {
            parts.extend(decoder.push(id).unwrap());
        }
        assert_eq!(parts[0], " cat");
        assert!(parts.contains(&"😀".to_string()));
        assert_eq!(parts.concat() + &decoder.finish().unwrap(), text);
    }

    #[test]
    fn an_incomplete_character_is_returned_at_the_end() {
        let tiny = tiny();
        let mut decoder = IncrementalDecoder::new(&tiny, &tiny.encode("a").unwrap());
        assert_eq!(decoder.push(tiny.id("<0xC3>").unwrap()).unwrap(), None);
        assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn after_bos_the_text_begins_without_a_space() {
        let tiny = tiny();
        let mut decoder = IncrementalDecoder::new(&tiny, &[1]);
        assert_eq!(decoder.push(tiny.id("▁cat").unwrap()).unwrap().unwrap(), "cat");
        assert_eq!(decoder.push(tiny.id("▁cat").unwrap()).unwrap().unwrap(), " cat");
    }
}
