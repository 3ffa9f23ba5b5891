//! Exact match with one of the accepted answers.

use lorakit_task::AnswerComparison;

/// True if the text equals one of the accepted answers, ignoring leading and trailing white space.
///
/// ```
/// use lorakit_eval::exact_match;
///
/// assert!(exact_match(" Paris\n", &["paris", "Paris"]));
/// assert!(!exact_match("Paris.", &["Paris"]));
/// ```
pub fn exact_match<S: AsRef<str>>(text: &str, accepted: &[S]) -> bool {
    exact_match_by(&AnswerComparison::default(), text, accepted)
}

/// True if the text is one of the accepted answers, as the task compares them.
///
/// ```
/// use lorakit_eval::exact_match_by;
/// use lorakit_task::AnswerComparison;
///
/// let numbers = AnswerComparison::new(false, &[], Some(1e-3))?;
/// assert!(exact_match_by(&numbers, "1,005", &["1005.0"]));
/// # Ok::<(), lorakit_task::TaskError>(())
/// ```
pub fn exact_match_by<S: AsRef<str>>(comparison: &AnswerComparison, text: &str, accepted: &[S]) -> bool {
    accepted.iter().any(|answer| comparison.equal(text, answer.as_ref()))
}

/// True if the text equals one of the accepted answers in lower case, without ASCII punctuation, with single spaces
/// between words: the exact match in the code of arXiv:2405.11157. Of an answer of nothing but punctuation, such as the
/// brackets of BBH's dyck_languages, that would leave nothing to compare: the text must equal it as [`exact_match`] says.
///
/// ```
/// use lorakit_eval::exact_match_normalized;
///
/// assert!(exact_match_normalized("the  answer: (B).", &["The answer B"]));
/// assert!(exact_match_normalized(" ]", &["]"]) && !exact_match_normalized("", &["]"]));
/// ```
pub fn exact_match_normalized<S: AsRef<str>>(text: &str, accepted: &[S]) -> bool {
    accepted.iter().map(S::as_ref).any(|answer| match normalized(answer) {
        bare if bare.is_empty() => exact_match(text, &[answer]),
        bare => bare == normalized(text),
    })
}

/// The text in lower case, without ASCII punctuation, with single spaces between words.
fn normalized(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_of_punctuation_are_compared_as_they_stand() {
        for (text, answer, equal) in
            [("", "]", false), (")", "]", false), ("] )\n", "] )", true), ("a", "]", false), ("]", "a", false)]
        {
            assert_eq!(exact_match_normalized(text, &[answer]), equal, "{text} {answer}");
        }
        assert!(exact_match_normalized("b.", &["]", "B"]));
    }

    #[derive(serde::Deserialize)]
    struct Case {
        pred: String,
        refs: Vec<String>,
        exact_match: f64,
    }

    #[test]
    fn scores_equal_those_of_the_paper_s_code() {
        let oracle: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/mttl_scores.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_value(oracle["text_metrics"].clone()).unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            assert_eq!(exact_match_normalized(&case.pred, &case.refs), case.exact_match == 100.0, "{}", case.pred);
        }
    }
}
