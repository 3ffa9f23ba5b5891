//! A tokenised row, for training and scoring.

use crate::error::{At, Error, Result};
use crate::row::Row;
use crate::tokenization::tokenizer::Tokenizer;

/// A tokenised row: `prompt`, then `target`. Only the target contributes to the loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The tokens that the model reads, at least one.
    pub prompt: Vec<u32>,
    /// The tokens that the model should write, EOS last, at least one.
    pub target: Vec<u32>,
    /// The tokens that were cut off.
    pub truncation: Truncation,
}

/// How many tokens of a row did not fit in the maximum length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// Cut from the left of the prompt, after BOS.
    pub prompt: usize,
    /// Cut from the right of the target, EOS among them; zero unless the target alone is too long.
    pub target: usize,
}

/// A token of an [`Example`], for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenView {
    /// The token's id.
    pub id: u32,
    /// The token as the tokenizer spells it, such as `Ġthe` or `▁the`.
    pub token: String,
    /// Whether the token contributes to the loss.
    pub loss: bool,
}

impl Example {
    /// Tokenises a row with its training target.
    ///
    /// The prompt begins with BOS if the tokenizer's post-processor adds it. An empty prompt without BOS becomes one BOS
    /// (or EOS if the tokenizer has no BOS), since the first target token must be predicted from something.
    ///
    /// If prompt and target are longer than `max_length` tokens, the prompt is cut from the left, keeping BOS and at
    /// least one token. A target that is still too long is cut from the right. [`Example::truncation`] counts both.
    ///
    /// # Errors
    /// If the tokenizer fails, or `max_length` is below 2.
    pub fn encode(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        Example::encode_answer(row, row.target(), tokenizer, max_length)
    }

    /// As [`Example::encode`], one example for each choice of the row, which `acc_tok` compares. Empty if the row has no
    /// choices.
    ///
    /// # Errors
    /// As [`Example::encode`].
    pub fn encode_choices(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
        let texts = row.choices().map_or(&[][..], |(texts, _)| texts);
        let encode = |text: &String| Example::encode_answer(row, text, tokenizer, max_length);
        texts.iter().map(encode).collect()
    }

    fn encode_answer(row: &Row, answer: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        let encode = || {
            let prompt = tokenizer.encode(&row.prompt)?;
            let answer = format!("{}{answer}", row.delimiter);
            let mut target = tokenizer.encode_after(&row.prompt, &prompt, &answer)?;
            // An answer may spell EOS itself.
            if target.last() != Some(&tokenizer.eos()) {
                target.push(tokenizer.eos());
            }
            Example::fit(prompt, target, tokenizer, max_length)
        };
        encode().at(|| format!("row {}", row.number))
    }

    /// Tokenises a prompt alone, for generation, as [`Example::encode`] does: cut from the left to `max_length` tokens,
    /// keeping BOS.
    ///
    /// # Errors
    /// If the tokenizer fails, or `max_length` leaves nothing of the prompt but BOS.
    pub fn encode_prompt(prompt: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<u32>> {
        let mut prompt = not_empty(tokenizer.encode(prompt)?, tokenizer);
        if prompt.len() > max_length && max_length <= tokenizer.prefix().len() {
            return Err(Error::Length(format!(
                "nothing of a prompt of {} tokens would be left, since there is room for {max_length}",
                prompt.len()
            )));
        }
        cut_left(&mut prompt, tokenizer.prefix(), max_length);
        Ok(prompt)
    }

    fn fit(prompt: Vec<u32>, mut target: Vec<u32>, tokenizer: &Tokenizer, max_length: usize) -> Result<Example> {
        if max_length < 2 {
            return Err(Error::Length(format!(
                "the maximum length is {max_length}; expected room for a prompt and a target, at least 2"
            )));
        }
        let mut prompt = not_empty(prompt, tokenizer);
        let whole = (prompt.len(), target.len());
        target.truncate(max_length - 1);
        cut_left(&mut prompt, tokenizer.prefix(), max_length - target.len());
        let truncation = Truncation { prompt: whole.0 - prompt.len(), target: whole.1 - target.len() };
        Ok(Example { prompt, target, truncation })
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.target.len()
    }

    /// Always false: an example has a prompt and a target.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens in order, for display.
    pub fn token_views(&self, tokenizer: &Tokenizer) -> Vec<TokenView> {
        let view = |loss| move |&id| TokenView { id, token: tokenizer.token(id).unwrap_or_default(), loss };
        let prompt = self.prompt.iter().map(view(false));
        prompt.chain(self.target.iter().map(view(true))).collect()
    }
}

/// The prompt, or if it is empty the one token that stands for it.
pub(crate) fn not_empty(mut prompt: Vec<u32>, tokenizer: &Tokenizer) -> Vec<u32> {
    if prompt.is_empty() {
        prompt.push(tokenizer.bos().unwrap_or(tokenizer.eos()));
    }
    prompt
}

/// Keeps the last `room` tokens, or fewer of them and the prefix: models that were trained with BOS do badly without it.
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
    use crate::tokenization::tokenizer::tests::{spell, tiny};

    fn row(prompt: &str, answer: &str) -> Row {
        Row {
            number: 1,
            fields: serde_json::Map::new(),
            prompt: prompt.into(),
            delimiter: String::new(),
            answer: Answer::Text(vec![answer.into()]),
        }
    }

    fn encode(prompt: &str, answer: &str, max_length: usize) -> (String, String, Truncation) {
        let tiny = tiny();
        let example = Example::encode(&row(prompt, answer), &tiny, max_length).unwrap();
        assert!(example.len() <= max_length);
        (spell(&tiny, &example.prompt), spell(&tiny, &example.target), example.truncation)
    }

    #[test]
    fn the_target_ends_with_eos() {
        let (prompt, target, cut) = encode("ab\n", "cat", 100);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s> ▁ a b <0x0A>", "cat </s>"));
        assert_eq!(cut, Truncation::default());
        assert_eq!(encode("a", "cat</s>", 100).1, "cat </s>", "an answer that ends with EOS gets no second one");
    }

    #[test]
    fn a_long_prompt_is_cut_from_the_left_and_keeps_bos() {
        let (prompt, target, cut) = encode("ab\n", "cat", 5);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s> b <0x0A>", "cat </s>"));
        assert_eq!(cut, Truncation { prompt: 2, target: 0 });
        assert_eq!(encode("ab\n", "cat", 3).0, "<s>");
    }

    #[test]
    fn a_target_too_long_by_itself_is_cut_from_the_right() {
        let (prompt, target, cut) = encode("ab\n", "xyz", 3);
        assert_eq!((prompt.as_str(), target.as_str()), ("<s>", "x y"));
        assert_eq!(cut, Truncation { prompt: 4, target: 2 });
        assert!(Example::encode(&row("a", "b"), &tiny(), 1).is_err());
    }

    #[test]
    fn an_empty_prompt_is_bos() {
        assert_eq!(encode("", "a", 10).0, "<s>");
    }

    #[test]
    fn token_views_say_which_tokens_contribute_to_the_loss() {
        let tiny = tiny();
        let example = Example::encode(&row("a\n", "cat"), &tiny, 10).unwrap();
        let token_views = example.token_views(&tiny);
        let loss: Vec<_> = token_views.iter().filter(|piece| piece.loss).collect();
        assert_eq!((loss[0].token.as_str(), loss[1].token.as_str()), ("cat", "</s>"));
        assert_eq!((token_views.len(), loss.len()), (6, 2));
    }

    #[test]
    fn a_prompt_for_generation_is_cut_as_for_training() {
        let tiny = tiny();
        let prompt = Example::encode_prompt("ab\n", &tiny, 3).unwrap();
        assert_eq!(spell(&tiny, &prompt), "<s> b <0x0A>");
        let error = Example::encode_prompt("ab\n", &tiny, 1).unwrap_err().to_string();
        assert!(error.contains("nothing of a prompt of 5 tokens would be left"), "{error}");
        assert_eq!(Example::encode_prompt("", &tiny, 1).unwrap(), [1]);
    }
}
