//! Choices as lm-evaluation-harness asks a model about them.

use anyhow::{Context, Result, bail};

use crate::example::begin;
use crate::row::Row;
use crate::vocabulary::Vocabulary;

/// What is asked about one choice: how likely `continuation` is after `context`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceRequest {
    /// What the model reads first, at least one token.
    pub context: Vec<u32>,
    /// The tokens whose log-likelihoods are summed; no EOS.
    pub continuation: Vec<u32>,
    /// Unicode code points of the choice, without the delimiter: what `acc_norm` divides by.
    pub characters: usize,
    /// UTF-8 bytes of the choice, without the delimiter.
    pub bytes: usize,
}

/// One request per choice of a row, as lm-evaluation-harness makes them; none where the row has no
/// choices.
///
/// White space at the end of the prompt moves to the continuation. Context and continuation are
/// encoded together, and what comes after as many tokens as the context has alone is the
/// continuation. BOS stands first where the tokenizer puts it; an empty context becomes BOS or,
/// for want of it, EOS. Of context and continuation the last `max_length + 1` tokens are kept (the
/// very last is predicted but not read), so that, unlike in [`crate::Example`], a long prompt
/// loses its BOS.
///
/// # Errors
/// Where the tokenizer fails, or a continuation alone has more than `max_length` tokens.
pub fn choice_requests(row: &Row, vocabulary: &Vocabulary, max_length: usize) -> Result<Vec<ChoiceRequest>> {
    let texts = row.choices().map_or(&[][..], |(texts, _)| texts);
    let request = |text: &String| request(row, text, vocabulary, max_length);
    let requests = texts.iter().map(request).collect::<Result<_>>();
    requests.with_context(|| format!("row {}", row.number))
}

fn request(row: &Row, text: &str, vocabulary: &Vocabulary, max_length: usize) -> Result<ChoiceRequest> {
    let kept = row.prompt.trim_end_matches(is_python_space);
    let moved = &row.prompt[kept.len()..];
    let continuation = format!("{moved}{}{text}", row.delimiter);
    let (mut context, continuation) = encode_pair(kept, &continuation, vocabulary)?;
    if continuation.is_empty() {
        bail!("the choice `{text}` has no token of its own after the prompt");
    }
    if continuation.len() > max_length {
        bail!("the choice `{text}` has {} tokens, and the model reads {max_length}", continuation.len());
    }
    let over = (context.len() + continuation.len()).saturating_sub(max_length + 1);
    context.drain(..over);
    Ok(ChoiceRequest { context, continuation, characters: text.chars().count(), bytes: text.len() })
}

/// Whole minus context. An empty context is a token of its own, before a continuation that is
/// encoded as it stands.
fn encode_pair(context: &str, continuation: &str, vocabulary: &Vocabulary) -> Result<(Vec<u32>, Vec<u32>)> {
    if context.is_empty() {
        return Ok((begin(Vec::new(), vocabulary), vocabulary.encode_bare(continuation)?));
    }
    let whole = vocabulary.encode(&format!("{context}{continuation}"))?;
    let context = vocabulary.encode(context)?;
    let rest = whole.get(context.len()..).unwrap_or_default().to_vec();
    Ok((context, rest))
}

/// What Python's `str.rstrip` takes away: Unicode white space, and four separators besides.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::Answer;
    use crate::vocabulary::tests::{spell, tiny};

    fn requests(prompt: &str, delimiter: &str, max_length: usize) -> Result<Vec<ChoiceRequest>> {
        let texts = vec!["cat".to_string(), "é".to_string()];
        let row = Row {
            number: 1,
            fields: serde_json::Map::new(),
            prompt: prompt.into(),
            delimiter: delimiter.into(),
            answer: Answer::Choices { texts, gold: 0 },
        };
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
    fn the_last_tokens_are_kept_and_one_more_than_the_model_reads() {
        assert_eq!(first("a:", " ", 3), pair("▁ a :", "▁cat"));
        let error = requests("a:", " ", 2).unwrap_err();
        assert!(format!("{error:#}").contains("the choice `é` has 3 tokens"));
    }

    #[test]
    fn lengths_are_those_of_the_choice_alone() {
        let requests = requests("a\n", "", 99).unwrap();
        assert_eq!((requests[1].characters, requests[1].bytes), (1, 2));
    }
}
