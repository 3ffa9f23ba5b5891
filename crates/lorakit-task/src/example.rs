//! A row as tokens to be trained on.

use anyhow::{Context, Result, bail};

use crate::row::Row;
use crate::vocabulary::Vocabulary;

/// A tokenised row. Its input is `prompt` followed by `target`; the target carries loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the model reads, at least one token.
    pub prompt: Vec<u32>,
    /// What the model is to write, EOS last, at least one token. Each of these carries loss.
    pub target: Vec<u32>,
    /// What did not fit.
    pub cut: Cut,
}

/// Tokens of an [`Example`] that did not fit into the length allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Left out at the prompt's left, after BOS.
    pub prompt: usize,
    /// Left out at the target's right, EOS among them: not zero only where the target alone is too
    /// long.
    pub target: usize,
}

/// A token of an [`Example`], for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token's id.
    pub id: u32,
    /// The token as the vocabulary spells it, such as `Ġthe` or `▁the`.
    pub token: String,
    /// True where the token carries loss.
    pub loss: bool,
}

impl Example {
    /// Tokenises a row with the answer that training uses.
    ///
    /// The prompt begins with BOS where the tokenizer's post-processor puts it. An empty prompt
    /// without BOS becomes one BOS (where the tokenizer has one) or EOS, since the first token of
    /// the target must be predicted from something.
    ///
    /// Where prompt and target are longer than `max_length` tokens, the prompt is cut from the
    /// left, BOS kept; at least one token of it stays. A target that is too long even so is cut
    /// from the right. [`Example::cut`] counts both.
    ///
    /// # Errors
    /// Where the tokenizer fails, or `max_length` leaves no room for a prompt and a target.
    pub fn encode(row: &Row, vocabulary: &Vocabulary, max_length: usize) -> Result<Example> {
        Example::encode_answer(row, row.target(), vocabulary, max_length)
    }

    /// As [`Example::encode`], one example per choice of the row: what `acc_tok` compares. Empty
    /// where the row has no choices.
    ///
    /// # Errors
    /// As [`Example::encode`].
    pub fn encode_choices(row: &Row, vocabulary: &Vocabulary, max_length: usize) -> Result<Vec<Example>> {
        let texts = row.choices().map_or(&[][..], |(texts, _)| texts);
        let encode = |text: &String| Example::encode_answer(row, text, vocabulary, max_length);
        texts.iter().map(encode).collect()
    }

    fn encode_answer(row: &Row, answer: &str, vocabulary: &Vocabulary, max_length: usize) -> Result<Example> {
        let encode = || {
            let prompt = vocabulary.encode(&row.prompt)?;
            let answer = format!("{}{answer}", row.delimiter);
            let mut target = vocabulary.encode_after(&row.prompt, &prompt, &answer)?;
            target.push(vocabulary.eos());
            Example::fit(prompt, target, vocabulary, max_length)
        };
        encode().with_context(|| format!("row {}", row.number))
    }

    /// Tokenises a prompt alone, for generation: as [`Example::encode`] does, cut from the left to
    /// `max_length` tokens with BOS kept.
    ///
    /// # Errors
    /// Where the tokenizer fails, or `max_length` is 0.
    pub fn encode_prompt(prompt: &str, vocabulary: &Vocabulary, max_length: usize) -> Result<Vec<u32>> {
        if max_length == 0 {
            bail!("a length of 0 leaves no room for a prompt");
        }
        let mut prompt = begin(vocabulary.encode(prompt)?, vocabulary);
        cut_left(&mut prompt, vocabulary.prefix(), max_length);
        Ok(prompt)
    }

    fn fit(prompt: Vec<u32>, mut target: Vec<u32>, vocabulary: &Vocabulary, max_length: usize) -> Result<Example> {
        if max_length < 2 {
            bail!("a length of {max_length} leaves no room for a prompt and a target; give 2 or more");
        }
        let mut prompt = begin(prompt, vocabulary);
        let whole = (prompt.len(), target.len());
        target.truncate(max_length - 1);
        cut_left(&mut prompt, vocabulary.prefix(), max_length - target.len());
        let cut = Cut { prompt: whole.0 - prompt.len(), target: whole.1 - target.len() };
        Ok(Example { prompt, target, cut })
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.target.len()
    }

    /// Never true: an example has a prompt and a target.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens in order, each with the text it stands for and whether it carries loss.
    pub fn pieces(&self, vocabulary: &Vocabulary) -> Vec<Piece> {
        let piece = |loss| move |&id| Piece { id, token: vocabulary.token(id).unwrap_or_default(), loss };
        let prompt = self.prompt.iter().map(piece(false));
        prompt.chain(self.target.iter().map(piece(true))).collect()
    }
}

/// A prompt of at least one token.
pub(crate) fn begin(mut prompt: Vec<u32>, vocabulary: &Vocabulary) -> Vec<u32> {
    if prompt.is_empty() {
        prompt.push(vocabulary.bos().unwrap_or(vocabulary.eos()));
    }
    prompt
}

/// Keeps the last `room` tokens, and of these the first as the prefix where the prompt has it:
/// models that were trained with BOS read badly without it.
fn cut_left(prompt: &mut Vec<u32>, prefix: &[u32], room: usize) {
    if prompt.len() <= room {
        return;
    }
    let kept = if prompt.starts_with(prefix) { prefix.len().min(room) } else { 0 };
    let cut = prompt.len() - room;
    prompt.drain(kept..kept + cut);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::Answer;
    use crate::vocabulary::tests::{spell, tiny};

    fn row(prompt: &str, answer: &str) -> Row {
        Row {
            number: 1,
            fields: serde_json::Map::new(),
            prompt: prompt.into(),
            delimiter: String::new(),
            answer: Answer::Text(vec![answer.into()]),
        }
    }

    fn encode(prompt: &str, answer: &str, max_length: usize) -> (String, String, Cut) {
        let tiny = tiny();
        let example = Example::encode(&row(prompt, answer), &tiny, max_length).unwrap();
        assert!(example.len() <= max_length);
        (spell(&tiny, &example.prompt), spell(&tiny, &example.target), example.cut)
    }

    #[test]
    fn the_target_ends_with_eos() {
        let (prompt, target, cut) = encode("ab\n", "cat", 100);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s> ▁ a b <0x0A>", "cat </s>"));
        assert_eq!(cut, Cut::default());
    }

    #[test]
    fn a_long_prompt_is_cut_from_the_left_and_keeps_bos() {
        let (prompt, target, cut) = encode("ab\n", "cat", 5);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s> b <0x0A>", "cat </s>"));
        assert_eq!(cut, Cut { prompt: 2, target: 0 });
        assert_eq!(encode("ab\n", "cat", 3).0, "<s>");
    }

    #[test]
    fn a_target_too_long_by_itself_is_cut_from_the_right_and_counted() {
        let (prompt, target, cut) = encode("ab\n", "xyz", 3);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s>", "x y"));
        assert_eq!(cut, Cut { prompt: 4, target: 2 });
        assert!(Example::encode(&row("a", "b"), &tiny(), 1).is_err());
    }

    #[test]
    fn an_empty_prompt_is_bos() {
        assert_eq!(encode("", "a", 10).0, "<s>");
    }

    #[test]
    fn pieces_tell_which_tokens_carry_loss() {
        let tiny = tiny();
        let example = Example::encode(&row("a\n", "cat"), &tiny, 10).unwrap();
        let pieces = example.pieces(&tiny);
        let loss: Vec<_> = pieces.iter().filter(|piece| piece.loss).collect();
        assert_eq!((loss[0].token.as_str(), loss[1].token.as_str()), ("cat", "</s>"));
        assert_eq!((pieces.len(), loss.len()), (6, 2));
    }

    #[test]
    fn a_prompt_for_generation_is_cut_as_one_for_training() {
        let tiny = tiny();
        let prompt = Example::encode_prompt("ab\n", &tiny, 3).unwrap();
        assert_eq!(spell(&tiny, &prompt), "<s> b <0x0A>");
    }
}
