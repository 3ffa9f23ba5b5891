//! Regular expressions as Python's `re` reads them, in which task files of lm-evaluation-harness are written.

use fancy_regex::{Captures, Error, Regex};
use lorakit_format::{from_python, replacement_from_python};

/// A pattern that matches what it matches in Python. Look-around is allowed; backtracking is bounded.
#[derive(Clone, Debug)]
pub(crate) struct PythonRegex {
    source: String,
    regex: Regex,
}

impl PythonRegex {
    /// Compiles the pattern.
    pub(crate) fn new(source: &str) -> Result<Self, Box<Error>> {
        Ok(Self { source: source.to_owned(), regex: Regex::new(&from_python(source)).map_err(Box::new)? })
    }

    /// The pattern as it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The groups of the first match.
    pub(crate) fn captures<'t>(&self, text: &'t str) -> Result<Option<Captures<'t>>, Box<Error>> {
        self.regex.captures(text).map_err(Box::new)
    }

    /// The text with all matches replaced, as by `re.sub`.
    pub(crate) fn replace_all(&self, text: &str, replacement: &str) -> Result<String, Box<Error>> {
        let replacement = replacement_from_python(replacement);
        let replaced = self.regex.try_replacen(text, 0, replacement.as_str()).map_err(Box::new)?;
        Ok(replaced.into_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn matches_are_replaced() {
        let replaced = |pattern: &str, text| PythonRegex::new(pattern).unwrap().replace_all(text, "").unwrap();
        assert_eq!(replaced(r"\.$", "yes.\n"), "yes\n");
        assert_eq!(PythonRegex::new(r"\.$").unwrap().source(), r"\.$");
        assert_eq!(PythonRegex::new("(a)").unwrap().replace_all("ab", r"<\1>$").unwrap(), "<a>$b");
    }
}
