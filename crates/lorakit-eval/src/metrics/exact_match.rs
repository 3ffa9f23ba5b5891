//! Exact match with one of the accepted answers.

/// True if the text equals one of the accepted answers, ignoring leading and trailing white space.
///
/// ```
/// use lorakit_eval::exact_match;
///
/// assert!(exact_match(" Paris\n", &["paris", "Paris"]));
/// assert!(!exact_match("Paris.", &["Paris"]));
/// ```
pub fn exact_match<S: AsRef<str>>(text: &str, accepted: &[S]) -> bool {
    accepted.iter().any(|answer| answer.as_ref().trim() == text.trim())
}

/// True if the text equals one of the accepted answers after [`normalized`]: the exact match in the code of
/// arXiv:2405.11157.
///
/// ```
/// use lorakit_eval::exact_match_normalized;
///
/// assert!(exact_match_normalized("the  answer: (B).", &["The answer B"]));
/// ```
pub fn exact_match_normalized<S: AsRef<str>>(text: &str, accepted: &[S]) -> bool {
    accepted.iter().any(|answer| normalized(answer.as_ref()) == normalized(text))
}

/// The text in lower case, without ASCII punctuation, with single spaces between words.
pub fn normalized(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
