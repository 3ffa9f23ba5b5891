//! How generated answers are compared with accepted ones.

use crate::error::{Result, TaskError};
use crate::python_regex::PythonRegex;

/// When a text equals an accepted answer. By default white space around both is ignored and nothing else;
/// `ignore_case` and `regexes_to_ignore` are those of lm-evaluation-harness's `exact_match`.
#[derive(Clone, Debug, Default)]
pub struct AnswerComparison {
    ignore_case: bool,
    ignored: Vec<PythonRegex>,
    tolerance: Option<f64>,
}

impl AnswerComparison {
    /// Ignores what `regexes_to_ignore` match in both texts, then, if `ignore_case`, case. With a `tolerance`, texts that
    /// are both numbers are equal if they differ by at most that.
    ///
    /// # Errors
    /// If a pattern is not a regular expression, or the tolerance is negative or not a number.
    pub fn new(ignore_case: bool, regexes_to_ignore: &[String], tolerance: Option<f64>) -> Result<Self> {
        let compile = |pattern: &String| {
            PythonRegex::new(pattern).map_err(|source| TaskError::Pattern {
                key: "regexes_to_ignore",
                pattern: pattern.clone(),
                source,
            })
        };
        if let Some(tolerance) = tolerance.filter(|tolerance| !tolerance.is_finite() || *tolerance < 0.0) {
            return Err(TaskError::Config(format!("`tolerance` is {tolerance}; expected a number of at least 0")));
        }
        let ignored = regexes_to_ignore.iter().map(compile).collect::<Result<_>>()?;
        Ok(Self { ignore_case, ignored, tolerance })
    }

    /// Whether case is ignored.
    pub fn ignore_case(&self) -> bool {
        self.ignore_case
    }

    /// The patterns of what is ignored.
    pub fn regexes_to_ignore(&self) -> impl Iterator<Item = &str> {
        self.ignored.iter().map(PythonRegex::source)
    }

    /// The most by which numbers may differ; None: numbers are compared as texts.
    pub fn tolerance(&self) -> Option<f64> {
        self.tolerance
    }

    /// Whether a text is that answer.
    pub fn equal(&self, text: &str, answer: &str) -> bool {
        let (text, answer) = (self.compared(text), self.compared(answer));
        let within = |tolerance: f64| Some((number(&text)? - number(&answer)?).abs() <= tolerance);
        self.tolerance.and_then(within).unwrap_or(text == answer)
    }

    /// What of a text is compared.
    fn compared(&self, text: &str) -> String {
        // Where backtracking reaches its bound, nothing is removed.
        let remove = |text: String, pattern: &PythonRegex| pattern.replace_all(&text, "").unwrap_or(text);
        let text = self.ignored.iter().fold(text.trim().to_owned(), remove);
        // What is removed may have had white space before it.
        let text = text.trim();
        if self.ignore_case { text.to_lowercase() } else { text.to_owned() }
    }
}

/// A number, perhaps with commas between its thousands or at the end of a sentence.
fn number(text: &str) -> Option<f64> {
    let digits = text.trim().trim_end_matches(['.', ',']).replace(',', "");
    digits.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_compared_within_the_tolerance() {
        let numbers = AnswerComparison::new(false, &[], Some(1e-3)).unwrap();
        for (text, answer, equal) in [
            ("64335696", "64335696.0", true),
            ("64,335,696.", "64335696.0", true),
            ("64335697", "64335696.0", false),
            ("0.3333", "0.333", true),
            ("0.335", "0.333", false),
            ("-3", "3.0", false),
            ("1e3", "1000.0", true),
            ("seven", "7.0", false),
            ("seven", "seven", true),
            ("1.2.3", "1.2", false),
            ("nan", "inf", false),
        ] {
            assert_eq!(numbers.equal(text, answer), equal, "{text} {answer}");
        }
        assert!(!AnswerComparison::default().equal("64335696", "64335696.0"), "texts, unless a tolerance is given");
    }

    #[test]
    fn what_is_ignored_is_ignored_in_both() {
        let lorahub = AnswerComparison::new(true, &[r"\.".to_owned()], None).unwrap();
        for (text, answer, equal) in [
            (" yes.\n", "Yes", true),
            ("yes .", "Yes", true),
            ("(A)", "(a).", true),
            ("A", "(A)", false),
            ("1.5", "15", true),
        ] {
            assert_eq!(lorahub.equal(text, answer), equal, "{text} {answer}");
        }
        assert!(!AnswerComparison::default().equal("yes", "Yes"));
    }

    #[test]
    fn wrong_settings_are_named() {
        let pattern = AnswerComparison::new(false, &["(".to_owned()], None).unwrap_err().to_string();
        assert!(pattern.contains("`regexes_to_ignore`"), "{pattern}");
        for tolerance in [-1.0, f64::NAN] {
            let error = AnswerComparison::new(false, &[], Some(tolerance)).unwrap_err().to_string();
            assert!(error.contains("`tolerance`"), "{error}");
        }
    }
}
