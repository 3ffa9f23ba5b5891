//! Regular expressions over module paths, matched as PEFT matches them in Python, in bounded time.

use std::fmt;
use std::ops::Range;

use fancy_regex::{Regex, RegexBuilder};
use lorakit_format::from_python;

use crate::error::{AdapterError, Result};

/// The limit of backtracking steps on one path. Honest patterns need a few hundred.
const BACKTRACK_LIMIT: usize = 100_000;

/// The longest pattern accepted, in bytes. The longest in published adapters has a few hundred.
const LENGTH_LIMIT: usize = 1 << 16;

/// A regular expression over module paths, with look-around, which published adapters use.
#[derive(Clone)]
pub struct PathPattern {
    source: String,
    regex: Regex,
}

impl PathPattern {
    /// A pattern that must match the whole path, as `re.fullmatch` does: a `target_modules` that is a string.
    ///
    /// # Errors
    /// If the pattern is too long or not a regular expression.
    pub fn whole(source: &str) -> Result<Self> {
        Self::wrapped("^(?:", source, ")$")
    }

    /// A pattern that must match the path or its last segments: a key of `rank_pattern`, which PEFT matches as
    /// `(.*\.)?(KEY)$`.
    ///
    /// # Errors
    /// If the pattern is too long or not a regular expression.
    pub fn suffix(source: &str) -> Result<Self> {
        Self::wrapped(r"^(?:.*\.)?(?:", source, ")$")
    }

    /// A pattern for the name of a list of layers, whose [`layer`](Self::layer) is the number after it: a name in
    /// `layers_pattern`, which PEFT matches as `(?:^|.*?\.)NAME\.(\d+)\.` at the start of the path.
    ///
    /// # Errors
    /// If the pattern is too long or not a regular expression.
    pub fn layer_list(source: &str) -> Result<Self> {
        Self::wrapped(r"^(?:(?:^|.*?\.)", source, r"\.(?<layer>\d+)\.)")
    }

    /// A pattern that may match any part of a name, as `re.search` does.
    ///
    /// # Errors
    /// If the pattern is too long or not a regular expression.
    pub fn anywhere(source: &str) -> Result<Self> {
        Self::wrapped("", source, "")
    }

    fn wrapped(before: &str, source: &str, after: &str) -> Result<Self> {
        if source.len() > LENGTH_LIMIT {
            return Err(AdapterError::PatternLength { length: source.len(), limit: LENGTH_LIMIT });
        }
        let compile = |text: &str| {
            let built = RegexBuilder::new(text).backtrack_limit(BACKTRACK_LIMIT).build();
            built.map_err(|error| AdapterError::Regex { pattern: source.to_owned(), source: Box::new(error) })
        };
        let translated = from_python(source);
        // On its own first: `a)|(b` is an error, which the wrapping would turn into another pattern.
        compile(&translated)?;
        let regex = compile(&format!("{before}{translated}{after}"))?;
        Ok(Self { source: source.to_owned(), regex })
    }

    /// The pattern as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the pattern matches `path`.
    ///
    /// # Errors
    /// If matching takes too many steps, which only a pattern that backtracks exponentially does.
    pub fn matches(&self, path: &str) -> Result<bool> {
        self.regex.is_match(path).map_err(|error| self.stopped(path, error))
    }

    /// Where in `path` the pattern first matches.
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn find(&self, path: &str) -> Result<Option<Range<usize>>> {
        let found = self.regex.find(path).map_err(|error| self.stopped(path, error))?;
        Ok(found.map(|found| found.range()))
    }

    /// The number of the layer that `path` is in, for a [`layer_list`](Self::layer_list).
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn layer(&self, path: &str) -> Result<Option<i64>> {
        let captures = self.regex.captures(path).map_err(|error| self.stopped(path, error))?;
        Ok(captures.and_then(|found| found.name("layer")?.as_str().parse().ok()))
    }

    fn stopped(&self, path: &str, error: fancy_regex::Error) -> AdapterError {
        AdapterError::Backtracking {
            pattern: self.source.clone(),
            path: path.to_owned(),
            limit: BACKTRACK_LIMIT,
            source: Box::new(error),
        }
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathPattern(`{}`)", self.source)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_whole_pattern_matches_the_whole_path() {
        let pattern = PathPattern::whole(r".*dense|.*q_proj").unwrap();
        assert!(pattern.matches("model.layers.0.self_attn.q_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.self_attn.q_proj.extra").unwrap());
        assert!(!PathPattern::whole("q_proj").unwrap().matches("model.q_proj").unwrap());
    }

    #[test]
    fn operators_that_python_does_not_have_are_characters() {
        let pattern = PathPattern::whole(r"(?a).*\.[q&&v]_proj").unwrap();
        assert!(pattern.matches("model.layers.0.self_attn.v_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.self_attn.k_proj").unwrap());
        assert_eq!(pattern.source(), r"(?a).*\.[q&&v]_proj");
    }

    #[test]
    fn look_ahead_is_supported() {
        let source = concat!(
            r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj))(?=$)",
            r"|(?:\bmodel\.layers\.\d+\.(?=mlp)mlp\.up_proj)"
        );
        let pattern = PathPattern::whole(source).unwrap();
        assert!(pattern.matches("model.language_model.layers.3.self_attn.q_proj").unwrap());
        assert!(pattern.matches("model.layers.3.mlp.up_proj").unwrap());
        assert!(!pattern.matches("model.layers.3.self_attn.q_proj").unwrap());
        assert!(
            PathPattern::whole(r"model\.layers\.(?!0\.).*q_proj").unwrap().matches("model.layers.1.q_proj").unwrap()
        );
    }

    #[test]
    fn a_suffix_pattern_matches_whole_segments_at_the_end() {
        let pattern = PathPattern::suffix("q_proj").unwrap();
        assert!(pattern.matches("q_proj").unwrap());
        assert!(pattern.matches("model.layers.0.q_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.big_q_proj").unwrap());
        let anchored = PathPattern::suffix(r"^model\.layers\.0\.q_proj").unwrap();
        assert!(anchored.matches("model.layers.0.q_proj").unwrap());
        assert!(!anchored.matches("twin.model.layers.0.q_proj").unwrap());
        assert!(PathPattern::suffix("k|v").unwrap().matches("layer.v").unwrap());
    }

    #[test]
    fn an_exponential_pattern_ends_quickly_in_an_error() {
        let started = std::time::Instant::now();
        let path = format!("model.{}", "a".repeat(60));
        let error = PathPattern::whole(r"model\.(?=a)(?:(a+)+)\1b").unwrap().matches(&path).unwrap_err();
        assert!(error.to_string().contains("without nested repetition"), "{error}");
        assert!(started.elapsed().as_secs_f64() < 2.0);
    }

    #[test]
    fn invalid_expressions_are_refused() {
        for source in ["a)|(b", "(", "*x", &"a".repeat(LENGTH_LIMIT + 1), "(?:(?:a{1000}){1000}){1000}"] {
            assert!(PathPattern::whole(source).is_err(), "{}", &source[..source.len().min(40)]);
        }
    }
}
