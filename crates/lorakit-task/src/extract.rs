//! The part of a generated text that is the answer.

use anyhow::{Context, Result};
use fancy_regex::Regex;

/// A regular expression that finds the answer in a longer text, such as `#### (-?[0-9.,]+)` in a
/// worked solution. Look-around is allowed; backtracking is bounded.
#[derive(Clone, Debug)]
pub struct Extract(Regex);

impl Extract {
    /// Compiles the pattern.
    ///
    /// # Errors
    /// Where the pattern is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        let regex = Regex::new(pattern).with_context(|| format!("`extract` is not a regular expression: {pattern}"))?;
        Ok(Extract(regex))
    }

    /// The first match's first group, or the whole match where the pattern has no group; None
    /// where nothing matches, which for a generated text means that it is wrong.
    pub fn apply<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text).ok()??;
        let found = captures.get(1).or_else(|| captures.get(0))?;
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
    fn the_group_is_the_answer() {
        let extract = Extract::new(r"#### (-?[0-9.,]+)").unwrap();
        assert_eq!(extract.apply("2 + 3 = 5\n#### 1,005"), Some("1,005"));
        assert_eq!(extract.apply("five"), None);
        let extract = Extract::new(r"(?<=the answer is ).*(?=\.)").unwrap();
        assert_eq!(extract.apply("So the answer is (B)."), Some("(B)"));
        assert!(Extract::new("(").is_err());
    }
}
