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
