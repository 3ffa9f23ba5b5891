//! Regular expressions as Python's `re` reads them, in which task files of lm-evaluation-harness are written.

use std::iter::Peekable;
use std::str::Chars;

use fancy_regex::{Captures, Error, Regex};

/// A pattern that matches what it matches in Python. Look-around is allowed; backtracking is bounded.
#[derive(Clone, Debug)]
pub(crate) struct PythonRegex {
    source: String,
    regex: Regex,
}

impl PythonRegex {
    /// Compiles the pattern.
    pub(crate) fn new(source: &str) -> Result<Self, Box<Error>> {
        Ok(Self { source: source.to_owned(), regex: Regex::new(&translated(source)).map_err(Box::new)? })
    }

    /// The pattern as it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The groups of the first match.
    pub(crate) fn captures<'t>(&self, text: &'t str) -> Result<Option<Captures<'t>>, Box<Error>> {
        self.regex.captures(text).map_err(Box::new)
    }

    /// The text with all matches replaced.
    pub(crate) fn replace_all(&self, text: &str, replacement: &str) -> Result<String, Box<Error>> {
        let replaced = self.regex.try_replacen(text, 0, replacement).map_err(Box::new)?;
        Ok(replaced.into_owned())
    }
}

/// The flags that change how a pattern is read.
#[derive(Clone, Copy, Default)]
struct Flags {
    multi_line: bool,
    verbose: bool,
}

/// The pattern in the syntax of the engine, which differs from Python's in these: `$` matches only at the end, `\Z` before
/// line breaks at the end too, and character classes have set operations.
fn translated(pattern: &str) -> String {
    let (mut flags, mut outer, mut out) = (Flags::default(), Vec::new(), String::with_capacity(pattern.len()));
    let mut rest = pattern.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '\\' => match rest.next() {
                Some('Z') => out.push_str(r"\z"),
                escaped => out.extend(['\\'].into_iter().chain(escaped)),
            },
            '[' => translate_class(&mut rest, &mut out),
            '$' if !flags.multi_line => out.push_str(r"(?=\n?\z)"),
            '#' if flags.verbose => while rest.next().is_some_and(|skipped| skipped != '\n') {},
            '(' if is_comment(&rest) => while rest.next().is_some_and(|skipped| skipped != ')') {},
            '(' => {
                outer.push(flags);
                out.push('(');
                if let Some(given) = flags_of_group(&rest, flags) {
                    flags = given;
                    // Flags without a group apply to what follows, up to the end of the group around them.
                    if is_flags_alone(&rest) {
                        outer.pop();
                        out.extend(rest.by_ref().take_while(|flag| *flag != ')'));
                        out.push(')');
                    }
                }
            }
            ')' => {
                flags = outer.pop().unwrap_or(flags);
                out.push(')');
            }
            other => out.push(other),
        }
    }
    out
}

/// Whether a parenthesis opens a comment, `(?#...)`.
fn is_comment(rest: &Peekable<Chars>) -> bool {
    rest.clone().take(2).eq(['?', '#'])
}

/// The flags inside of a group that sets them, `(?m:...)`, or after one that is nothing else, `(?m)`.
fn flags_of_group(rest: &Peekable<Chars>, mut flags: Flags) -> Option<Flags> {
    let mut rest = rest.clone();
    rest.next_if_eq(&'?')?;
    let mut on = true;
    for next in rest {
        match next {
            'm' => flags.multi_line = on,
            'x' => flags.verbose = on,
            '-' => on = false,
            ':' | ')' => return Some(flags),
            other if other.is_ascii_alphabetic() && other != 'P' => {}
            _ => return None,
        }
    }
    None
}

/// Whether a group holds nothing but flags.
fn is_flags_alone(rest: &Peekable<Chars>) -> bool {
    rest.clone().find(|next| matches!(next, ':' | ')')) == Some(')')
}

/// Writes a character class, from after its bracket, so that everything in it but escapes and ranges is literal.
fn translate_class(rest: &mut Peekable<Chars>, out: &mut String) {
    out.push('[');
    out.extend(rest.next_if_eq(&'^'));
    let mut is_first = true;
    loop {
        match rest.next() {
            // Without an end it is an error in the engine too.
            None => return,
            Some(']') if !is_first => return out.push(']'),
            Some('\\') => out.extend(['\\'].into_iter().chain(rest.next())),
            Some(literal) => push_literal(literal, out),
        }
        is_first = false;
        let mut after = rest.clone();
        if after.next() == Some('-') && after.next().is_some_and(|end| end != ']') {
            out.extend(rest.next());
        }
    }
}

/// Writes a character of a class that means itself.
fn push_literal(literal: char, out: &mut String) {
    if matches!(literal, '[' | ']' | '^' | '-' | '&' | '~') {
        out.push('\\');
    }
    out.push(literal);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What a pattern finds first; None where it does not match.
    fn found<'t>(pattern: &str, text: &'t str) -> Option<&'t str> {
        let regex = PythonRegex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        regex.captures(text).unwrap().map(|captures| captures.get(0).unwrap().as_str())
    }

    // What is expected here is what Python 3.11's `re.search` returns.
    #[test]
    fn a_dollar_matches_before_a_final_line_break_and_big_z_at_the_very_end() {
        assert_eq!(found("is (.*)$", "it is 5\n"), Some("is 5"));
        assert_eq!(found("is (.*)$", "it is 5\n\n"), None);
        assert_eq!(found("5$", "5\r\n"), None);
        assert_eq!(found(r"5\Z", "5\n"), None);
        assert_eq!(found(r"5\Z", "5"), Some("5"));
        assert_eq!(found(r"5\$", "5$"), Some("5$"));
        assert_eq!(found("[$]", "$"), Some("$"));
        assert_eq!(found("(?m)^b$", "a\nb\nc"), Some("b"));
        assert_eq!(found("(?i)B$", "b\n"), Some("b"));
        assert_eq!(found("(?m:a$)\nb$", "a\nb\n"), Some("a\nb"));
        assert_eq!(found("(?im)(?-m:a$)", "a\nb"), None);
        assert_eq!(found("(?im)(?-m:b$)", "a\nB\n"), Some("B"));
        assert_eq!(found("(?P<number>5)$|x", "5\n"), Some("5"));
        assert_eq!(found("(?#a $ here)b$", "b\n"), Some("b"));
        assert_eq!(found("(?x) b $ # no ( here", "b\n"), Some("b"));
        assert_eq!(found("a(?=b$)", "ab\n"), Some("a"));
        assert_eq!(found("(?<!a)b$", "b\n"), Some("b"));
        assert_eq!(found(r"(?<=\()b\)$", "(b)\n"), Some("b)"));
    }

    #[test]
    fn a_class_has_no_operations() {
        assert_eq!(found("[a&&b]+", "x&ab"), Some("&ab"));
        assert_eq!(found("[[a]+", "x[a["), Some("[a["));
        assert_eq!(found("[~~a]+", "x~a"), Some("~a"));
        assert_eq!(found("[]a]+", "x]a"), Some("]a"));
        assert_eq!(found("[^]a]+", "]xa"), Some("x"));
        assert_eq!(found("[--/]+", "x-./,"), Some("-./"));
        assert_eq!(found("[+--]+", "x+,-."), Some("+,-"));
        assert_eq!(found("[-+]+", "x-+"), Some("-+"));
        assert_eq!(found("[a^-]+", "xa^-"), Some("a^-"));
        assert_eq!(found(r"[\w.-]+", "/a-b.c"), Some("a-b.c"));
        assert_eq!(found(r"[\]\\a-c]+", r"x]\b"), Some(r"]\b"));
        assert_eq!(found("[[:alpha:]]+", "x:]]"), Some(":]]"));
        assert!(PythonRegex::new("[a").is_err() && PythonRegex::new("[").is_err());
    }

    #[test]
    fn matches_are_replaced() {
        let replaced = |pattern: &str, text| PythonRegex::new(pattern).unwrap().replace_all(text, "").unwrap();
        assert_eq!(replaced(r"\.$", "yes.\n"), "yes\n");
        assert_eq!(PythonRegex::new(r"\.$").unwrap().source(), r"\.$");
    }
}
