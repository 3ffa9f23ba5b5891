//! Finds the answer in a generated text.

use fancy_regex::Regex;

use crate::error::{Result, TaskError};

/// A regular expression that finds the answer in a longer text, such as `#### (-?[0-9.,]+)` in a worked solution.
/// Look-around is allowed; backtracking is bounded.
#[derive(Clone, Debug)]
pub struct AnswerPattern(Regex);

impl AnswerPattern {
    /// Compiles the pattern.
    ///
    /// # Errors
    /// If the pattern is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        let regex = Regex::new(pattern).map_err(|source| TaskError::Pattern {
            key: "extract",
            pattern: pattern.to_string(),
            source: Box::new(source),
        })?;
        Ok(AnswerPattern(regex))
    }

    /// The first group that took part in the first match, or the whole match if none did; None without a match, which makes
    /// a generated text wrong.
    pub fn apply<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text).ok()??;
        let found = captures.iter().skip(1).flatten().next().or_else(|| captures.get(0))?;
        Some(found.as_str())
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        self.0.as_str()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_group_is_the_answer() {
        let extract = AnswerPattern::new(r"#### (-?[0-9.,]+)").unwrap();
        assert_eq!(extract.apply("2 + 3 = 5\n#### 1,005"), Some("1,005"));
        assert_eq!(extract.apply("five"), None);
        let extract = AnswerPattern::new(r"(?<=the answer is ).*(?=\.)").unwrap();
        assert_eq!(extract.apply("So the answer is (B)."), Some("(B)"));
        let extract = AnswerPattern::new(r"answer: (\w)|\((\w)\)").unwrap();
        assert_eq!((extract.apply("answer: B"), extract.apply("It is (C).")), (Some("B"), Some("C")));
        assert!(AnswerPattern::new("(").is_err());
    }
}
