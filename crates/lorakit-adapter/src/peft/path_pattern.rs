//! Regular expressions over module paths, matched as PEFT has Python match them, in bounded time.

use std::fmt;

use anyhow::{Context, Result, ensure};
use fancy_regex::{Regex, RegexBuilder};

/// Backtracking steps allowed for one path. Paths are short: honest patterns need a few hundred.
const BACKTRACK_LIMIT: usize = 100_000;

/// The longest pattern accepted, in bytes. The longest seen in published adapters has a few
/// hundred.
const LENGTH_LIMIT: usize = 1 << 16;

/// A regular expression over module paths. Look-around is allowed, since published adapters use it.
#[derive(Clone)]
pub struct PathPattern {
    source: String,
    regex: Regex,
}

impl PathPattern {
    /// A pattern that must match the whole path, as `re.fullmatch` does: the form of a string
    /// `target_modules`.
    ///
    /// # Errors
    /// If the pattern is too long or no regular expression.
    pub fn whole(source: &str) -> Result<Self> {
        Self::wrapped("^(?:", source, ")$")
    }

    /// A pattern that must match the path or its last segments: the form of the keys of
    /// `rank_pattern`, `(.*\.)?(KEY)$` matched from the start.
    ///
    /// # Errors
    /// If the pattern is too long or no regular expression.
    pub fn suffix(source: &str) -> Result<Self> {
        Self::wrapped(r"^(?:.*\.)?(?:", source, ")$")
    }

    /// A pattern for the name of a list of layers, whose [`layer`](Self::layer) is the number that
    /// follows it: the form of `layers_pattern`.
    ///
    /// # Errors
    /// If the pattern is too long or no regular expression.
    pub fn layer_list(source: &str) -> Result<Self> {
        Self::wrapped(r"^.*?\.(?:", source, r")\.(?<layer>\d+)\.")
    }

    fn wrapped(before: &str, source: &str, after: &str) -> Result<Self> {
        ensure!(source.len() <= LENGTH_LIMIT, "a pattern of {} bytes; expected at most {LENGTH_LIMIT}", source.len());
        // Alone first: `a)|(b` is an error that the wrapping would turn into another pattern.
        let compile = |text: &str| {
            RegexBuilder::new(text)
                .backtrack_limit(BACKTRACK_LIMIT)
                .build()
                .with_context(|| format!("`{source}` is not a regular expression"))
        };
        compile(source)?;
        let regex = compile(&format!("{before}{source}{after}"))?;
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
        self.regex.is_match(path).with_context(|| self.gave_up(path))
    }

    /// The number of the layer that `path` lies in, for a [`layer_list`](Self::layer_list).
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn layer(&self, path: &str) -> Result<Option<usize>> {
        let captures = self.regex.captures(path).with_context(|| self.gave_up(path))?;
        Ok(captures.and_then(|found| found.name("layer")?.as_str().parse().ok()))
    }

    fn gave_up(&self, path: &str) -> String {
        format!(
            "the pattern `{}` was given up on `{path}` after {BACKTRACK_LIMIT} steps; write it \
             without nested repetition",
            self.source
        )
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern(`{}`)", self.source)
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
    fn look_ahead_is_understood() {
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
        assert!(format!("{error:#}").contains("without nested repetition"), "{error:#}");
        assert!(started.elapsed().as_secs_f64() < 2.0);
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for source in ["a)|(b", "(", "*x", &"a".repeat(LENGTH_LIMIT + 1), "(?:(?:a{1000}){1000}){1000}"] {
            assert!(PathPattern::whole(source).is_err(), "{}", &source[..source.len().min(40)]);
        }
    }
}
