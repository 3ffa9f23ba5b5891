//! The requests that lm-evaluation-harness makes of a row with choices.

use crate::error::{At, Result, TaskError};
use crate::row::Row;
use crate::tokenization::conversation_tokens::{conversation_of, encode_prompt};
use crate::tokenization::example::{not_empty, prompt_tokens};
use crate::tokenization::row_layout::RowLayout;
use crate::tokenization::tokenizer::Tokenizer;

/// One choice: how likely is `continuation` after `context`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceRequest {
    /// The tokens before the choice, at least one.
    pub context: Vec<u32>,
    /// The tokens whose log-likelihoods are summed; no EOS.
    pub continuation: Vec<u32>,
    /// The length of the choice in Unicode code points, without the delimiter; `acc_norm` divides by it.
    pub characters: usize,
    /// The length of the choice in UTF-8 bytes, without the delimiter.
    pub bytes: usize,
}

/// One request for each choice of a row, as lm-evaluation-harness makes them; none if the row has no choices.
///
/// White space at the end of the prompt moves to the continuation. Context and continuation are encoded together; the
/// tokens after the first n are the continuation, where n is the length of the context encoded alone. BOS comes first if
/// the tokenizer adds it, unless the prompt goes through the chat template; an empty context becomes BOS, or EOS if there
/// is no BOS. Context and continuation are cut to their last `max_length + 1` tokens (the last is predicted but not
/// read): unlike in [`Example`], a long prompt loses its BOS. For an encoder-decoder the two are encoded apart, the
/// context as a whole text.
///
/// # Errors
/// If the tokenizer fails, or a continuation alone has more than `max_length` tokens.
///
/// [`Example`]: crate::tokenization::example::Example
pub fn choice_requests(row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<ChoiceRequest>> {
    let texts = row.choices().map_or(&[][..], |(texts, _)| texts);
    let request = |text: &String| request(row, text, tokenizer, max_length);
    let requests = texts.iter().map(request).collect::<Result<_>>();
    requests.at(|| format!("row {}", row.number))
}

fn request(row: &Row, text: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<ChoiceRequest> {
    let chat = conversation_of(row, text, tokenizer)?;
    let rendered = chat.map(|chat| encode_prompt(&chat, tokenizer, usize::MAX)).transpose()?;
    let (prompt, delimiter) = match &rendered {
        Some((prompt, _)) => (prompt, ""),
        None => (&row.prompt, row.delimiter_before(text)),
    };
    let kept = prompt.trim_end_matches(is_python_space);
    let moved = &prompt[kept.len()..];
    let continuation = format!("{moved}{delimiter}{text}");
    // A rendered prompt has its special tokens.
    let encode: &dyn Fn(&str) -> Result<Vec<u32>> = match rendered {
        Some(_) => &|text| tokenizer.encode_without_special(text),
        None => &|text| tokenizer.encode(text),
    };
    let (mut context, continuation) = match tokenizer.layout() {
        RowLayout::Stream => encode_pair(kept, &continuation, tokenizer, encode)?,
        RowLayout::SourceTarget { .. } => {
            (prompt_tokens(kept, tokenizer)?, tokenizer.encode_without_special(&continuation)?)
        }
    };
    if continuation.is_empty() {
        return Err(TaskError::Length(format!("the choice `{text}` has no token of its own after the prompt")));
    }
    if continuation.len() > max_length {
        return Err(TaskError::Length(format!(
            "the choice `{text}` has {} tokens, and the model reads {max_length}",
            continuation.len()
        )));
    }
    let over = (context.len() + continuation.len()).saturating_sub(max_length + 1);
    context.drain(..over.min(context.len().saturating_sub(tokenizer.layout().least_prompt())));
    Ok(ChoiceRequest { context, continuation, characters: text.chars().count(), bytes: text.len() })
}

/// The tokens of the context, and those of the whole text after them. An empty context is one token, before a continuation
/// that is encoded by itself.
fn encode_pair(
    context: &str,
    continuation: &str,
    tokenizer: &Tokenizer,
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
) -> Result<(Vec<u32>, Vec<u32>)> {
    if context.is_empty() {
        return Ok((not_empty(Vec::new(), tokenizer), tokenizer.encode_without_special(continuation)?));
    }
    let whole = encode(&format!("{context}{continuation}"))?;
    let context = encode(context)?;
    let rest = whole.get(context.len()..).unwrap_or_default().to_vec();
    Ok((context, rest))
}

/// What Python's `str.rstrip` strips: Unicode white space and four more separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::Answer;
    use crate::tokenization::tokenizer::tests::{spell, tiny};

    fn requests(prompt: &str, delimiter: &str, max_length: usize) -> Result<Vec<ChoiceRequest>> {
        let texts = vec!["cat".to_string(), "é".to_string()];
        let row = Row::plain(1, serde_json::Map::new(), prompt, delimiter, Answer::Choices { texts, gold: 0 });
        choice_requests(&row, &tiny(), max_length)
    }

    fn first(prompt: &str, delimiter: &str, max_length: usize) -> (String, String) {
        let request = requests(prompt, delimiter, max_length).unwrap().remove(0);
        (spell(&tiny(), &request.context), spell(&tiny(), &request.continuation))
    }

    fn pair(context: &str, continuation: &str) -> (String, String) {
        (context.into(), continuation.into())
    }

    #[test]
    fn the_continuation_is_the_whole_minus_the_context() {
        assert_eq!(first("a:", " ", 99), pair("<s> ▁ a :", "▁cat"));
        assert_eq!(first("", "", 99), pair("<s>", "▁cat"));
        assert_eq!(first("", " ", 99), pair("<s>", "▁ ▁cat"));
    }

    #[test]
    fn white_space_at_the_end_of_the_prompt_moves_to_the_continuation() {
        assert_eq!(first("a: ", "", 99), pair("<s> ▁ a :", "▁cat"));
        assert_eq!(first("a\n", "", 99), pair("<s> ▁ a", "<0x0A> cat"));
    }

    #[test]
    fn the_last_max_length_plus_one_tokens_are_kept() {
        assert_eq!(first("a:", " ", 3), pair("▁ a :", "▁cat"));
        let error = requests("a:", " ", 2).unwrap_err();
        assert!(format!("{:#}", anyhow::Error::from(error)).contains("the choice `é` has 3 tokens"));
    }

    #[test]
    fn lengths_do_not_include_the_delimiter() {
        let requests = requests("a\n", "", 99).unwrap();
        assert_eq!((requests[1].characters, requests[1].bytes), (1, 2));
    }
}
