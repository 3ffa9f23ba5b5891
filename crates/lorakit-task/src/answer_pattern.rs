//! Finds the answer in a generated text.

use crate::error::{Result, TaskError};
use crate::python_regex::PythonRegex;

/// A regular expression that finds the answer in a longer text, such as `#### (-?[0-9.,]+)` in a worked solution.
/// It matches what it matches in Python, as in the `regex` filter of lm-evaluation-harness.
#[derive(Clone, Debug)]
pub struct AnswerPattern(PythonRegex);

impl AnswerPattern {
    /// Compiles the pattern.
    ///
    /// # Errors
    /// If the pattern is not a regular expression, or empty.
    pub fn new(pattern: &str) -> Result<Self> {
        if pattern.is_empty() {
            return Err(TaskError::Config("`extract` is empty; expected a pattern that finds the answer".to_owned()));
        }
        let regex = PythonRegex::new(pattern).map_err(|source| TaskError::Pattern {
            key: "extract",
            pattern: pattern.to_string(),
            source,
        })?;
        Ok(AnswerPattern(regex))
    }

    /// The first group that is not empty in the first match, or the whole match if no group took part in it. None, which
    /// makes a generated text wrong, where there is no match or nothing but empty text is found.
    pub fn apply<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text).ok()??;
        let mut groups = captures.iter().skip(1).flatten().map(|group| group.as_str()).peekable();
        let found = if groups.peek().is_some() {
            groups.find(|group| !group.is_empty())
        } else {
            Some(&text[captures.get(0)?.range()])
        };
        found.filter(|found| !found.is_empty())
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_group_that_is_not_empty_is_the_answer() {
        let extract = AnswerPattern::new(r"#### (-?[0-9.,]+)").unwrap();
        assert_eq!(extract.apply("2 + 3 = 5\n#### 1,005"), Some("1,005"));
        assert_eq!(extract.apply("five"), None);
        let extract = AnswerPattern::new(r"(?<=the answer is ).*(?=\.)").unwrap();
        assert_eq!(extract.apply("So the answer is (B)."), Some("(B)"));
        let extract = AnswerPattern::new(r"answer: (\w)|\((\w)\)").unwrap();
        assert_eq!((extract.apply("answer: B"), extract.apply("It is (C).")), (Some("B"), Some("C")));
        let extract = AnswerPattern::new(r"(-?)(\d+)").unwrap();
        assert_eq!(
            (extract.apply("7"), extract.apply("5 apples"), extract.apply("-3")),
            (Some("7"), Some("5"), Some("-"))
        );
        let extract = AnswerPattern::new(r"x(\d*)|(\d*)y|[a-z]*").unwrap();
        assert_eq!(
            (extract.apply("x"), extract.apply("x7"), extract.apply("ab"), extract.apply("!")),
            (None, Some("7"), Some("ab"), None)
        );
        let extract = AnswerPattern::new("answer is (.*)$").unwrap();
        assert_eq!(extract.apply("So the answer is 5\n"), Some("5"));
        assert_eq!(extract.pattern(), "answer is (.*)$");
        assert!(AnswerPattern::new("(").is_err());
        assert!(AnswerPattern::new("").unwrap_err().to_string().contains("`extract` is empty"));
    }
}
