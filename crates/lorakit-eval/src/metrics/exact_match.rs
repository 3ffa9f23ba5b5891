//! Whether a text is one of the accepted answers.

/// True where the text is one of the accepted answers, white space at both ends aside.
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

/// True where the text is one of the accepted answers after [`normalized`]: the exact match of arXiv:2405.11157's
/// code.
///
/// ```
/// use lorakit_eval::exact_match_normalized;
///
/// assert!(exact_match_normalized("the  answer: (B).", &["The answer B"]));
/// ```
pub fn exact_match_normalized<S: AsRef<str>>(text: &str, accepted: &[S]) -> bool {
    accepted.iter().any(|answer| normalized(answer.as_ref()) == normalized(text))
}

/// The text in lower case, without ASCII punctuation, every run of white space one space and none at the ends.
pub fn normalized(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr)]
    use super::*;
    use std::path::Path;

    #[derive(serde::Deserialize)]
    struct Case {
        pred: String,
        refs: Vec<String>,
        exact_match: f64,
    }

    #[test]
    fn texts_score_as_in_the_papers_code() {
        let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/mttl_oracle.json");
        let Ok(text) = std::fs::read_to_string(oracle) else {
            return eprintln!("skipped: no ../shared");
        };
        let oracle: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases: Vec<Case> = serde_json::from_value(oracle["text_metrics"].clone()).unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            assert_eq!(exact_match_normalized(&case.pred, &case.refs), case.exact_match == 100.0, "{}", case.pred);
        }
    }
}
