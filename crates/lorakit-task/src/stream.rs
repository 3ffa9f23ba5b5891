//! Text while it is being generated, a token at a time.

use anyhow::Result;

use crate::vocabulary::Vocabulary;

/// Tokens of context that a decoder needs to spell the next one: enough for the longest character
/// in byte tokens, and for a space that depends on what stands before.
const CONTEXT: usize = 6;

/// Decodes generated tokens as they come.
///
/// One token is not one text: a character may be spread over several byte tokens, and a
/// SentencePiece decoder drops the space at the start of whatever it is given. So the tail of what
/// came before is decoded along with each token, and only what is new is given out.
#[derive(Debug)]
pub struct Stream<'v> {
    vocabulary: &'v Vocabulary,
    tokens: Vec<u32>,
    /// Where the decoded tail begins, and where what is not yet given out begins.
    tail: usize,
    fresh: usize,
}

impl<'v> Stream<'v> {
    /// A stream that goes on after the tokens of a prompt.
    pub fn new(vocabulary: &'v Vocabulary, prompt: &[u32]) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let fresh = tokens.len();
        Stream { vocabulary, tokens, tail: 0, fresh }
    }

    /// Takes a token and returns the text it completes; None while a character is incomplete.
    ///
    /// # Errors
    /// As [`Vocabulary::decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        self.tokens.push(token);
        let (before, all) = self.decode()?;
        // A replacement character at the end is most often half a character.
        if all.len() <= before.len() || all.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let text = all.get(before.len()..).map(str::to_string);
        self.tail = self.fresh;
        self.fresh = self.tokens.len();
        Ok(text)
    }

    /// What is left once no token follows: half characters, as replacement characters.
    ///
    /// # Errors
    /// As [`Vocabulary::decode`].
    pub fn finish(self) -> Result<String> {
        let (before, all) = self.decode()?;
        Ok(all.get(before.len()..).unwrap_or_default().to_string())
    }

    fn decode(&self) -> Result<(String, String)> {
        let before = self.vocabulary.decode(&self.tokens[self.tail..self.fresh])?;
        Ok((before, self.vocabulary.decode(&self.tokens[self.tail..])?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vocabulary::tests::tiny;

    #[test]
    fn pieces_join_to_the_text_and_characters_come_whole() {
        let tiny = tiny();
        let (prompt, text) = ("a cat:", " cat né 😀 cat");
        let tokens = tiny.encode(prompt).unwrap();
        let mut stream = Stream::new(&tiny, &tokens);
        let mut pieces = Vec::new();
        for id in tiny.encode_after(prompt, &tokens, text).unwrap() {
            pieces.extend(stream.push(id).unwrap());
        }
        assert_eq!(pieces[0], " cat");
        assert!(pieces.contains(&"😀".to_string()));
        assert_eq!(pieces.concat() + &stream.finish().unwrap(), text);
    }

    #[test]
    fn half_a_character_comes_out_at_the_end() {
        let tiny = tiny();
        let mut stream = Stream::new(&tiny, &tiny.encode("a").unwrap());
        assert_eq!(stream.push(tiny.id("<0xC3>").unwrap()).unwrap(), None);
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn after_bos_alone_the_text_begins_without_a_space() {
        let tiny = tiny();
        let mut stream = Stream::new(&tiny, &[1]);
        assert_eq!(stream.push(tiny.id("▁cat").unwrap()).unwrap().unwrap(), "cat");
        assert_eq!(stream.push(tiny.id("▁cat").unwrap()).unwrap().unwrap(), " cat");
    }
}
