//! Regular expressions of Python's `re` in the syntax of fancy_regex.

use std::iter::{Peekable, from_fn};
use std::str::Chars;

/// The flags that change how a pattern is read.
#[derive(Clone, Copy, Default)]
struct Flags {
    multi_line: bool,
    verbose: bool,
}

/// The pattern in the syntax of fancy_regex.
///
/// What fancy_regex reads otherwise than Python is translated: its `$` matches only at the end, its `\Z` also before final
/// line breaks, its `\<` and `\>` the ends of words, and its character classes have set operations. It does not know the
/// flag `a`, which restricts `\w` to ASCII in Python: the flag is left out. Octal escapes and `\N{...}` are not translated.
pub fn from_python(pattern: &str) -> String {
    let (mut flags, mut outer, mut out) = (Flags::default(), Vec::new(), String::with_capacity(pattern.len()));
    let mut rest = pattern.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '\\' => match rest.next() {
                Some('Z') => out.push_str(r"\z"),
                // In fancy_regex these are the ends of words.
                Some(literal @ ('<' | '>')) => out.push(literal),
                escaped => out.extend(['\\'].into_iter().chain(escaped)),
            },
            '[' => translate_class(&mut rest, &mut out),
            '$' if !flags.multi_line => out.push_str(r"(?=\n?\z)"),
            '#' if flags.verbose => while rest.next().is_some_and(|skipped| skipped != '\n') {},
            '(' if is_comment(&rest) => while rest.next().is_some_and(|skipped| skipped != ')') {},
            '(' => {
                outer.push(flags);
                match flags_of_group(&rest, flags) {
                    None => out.push('('),
                    Some(given) => {
                        flags = given;
                        // Flags without a group apply to what follows, up to the end of the group around them.
                        if translate_flags(&mut rest, &mut out) == Some(')') {
                            outer.pop();
                        }
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

/// The replacement of Python's `re.sub` in the syntax of fancy_regex: `\1` and `\g<name>` are groups, and `$` is itself.
pub fn replacement_from_python(replacement: &str) -> String {
    let mut out = String::with_capacity(replacement.len());
    let mut rest = replacement.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '$' => out.push_str("$$"),
            '\\' => translate_reference(&mut rest, &mut out),
            other => out.push(other),
        }
    }
    out
}

/// Writes what follows a backslash in a replacement.
fn translate_reference(rest: &mut Peekable<Chars>, out: &mut String) {
    let group: String = match rest.next() {
        Some(first) if first.is_ascii_digit() => {
            [first].into_iter().chain(rest.next_if(char::is_ascii_digit)).collect()
        }
        Some('g') if rest.next_if_eq(&'<').is_some() => rest.take_while(|next| *next != '>').collect(),
        Some('n') => return out.push('\n'),
        Some('t') => return out.push('\t'),
        Some('\\') | None => return out.push('\\'),
        Some(other) => return out.extend(['\\', other]),
    };
    out.extend(["${", &group, "}"]);
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

/// Writes the flags of a group, from after its parenthesis, without `a`, and returns what ends them. Nothing is written where
/// the group is `(?a)`.
fn translate_flags(rest: &mut Peekable<Chars>, out: &mut String) -> Option<char> {
    let flags: String = from_fn(|| rest.next_if(|next| !matches!(next, ':' | ')'))).collect();
    let (others, end) = (flags.replace('a', ""), rest.next());
    if end != Some(')') || others == flags || others != "?" {
        out.push('(');
        out.push_str(&others);
        out.extend(end);
    }
    end
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
    use fancy_regex::Regex;

    /// What a pattern finds first; None where it does not match.
    fn found<'t>(pattern: &str, text: &'t str) -> Option<&'t str> {
        let regex = Regex::new(&from_python(pattern)).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        regex.find(text).unwrap().map(|found| found.as_str())
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
        assert_eq!(found("(?a)5$", "5\n"), Some("5"));
        assert_eq!(found("(?am)^b$", "a\nb\nc"), Some("b"));
        assert_eq!(found(r"q_proj\Z", "q_proj\n"), None);
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
    fn escaped_angle_brackets_are_literal() {
        assert_eq!(found(r"\<a\>(.*?)\<\/a\>", "x <a>b</a>"), Some("<a>b</a>"));
        assert_eq!(found(r"\bb\b", "a b"), Some("b"));
    }

    // What is expected here is what Python 3.11's `re.sub` returns.
    #[test]
    fn replacements_refer_to_groups_by_backslashes() {
        let replaced = |pattern: &str, text: &str, replacement: &str| {
            let regex = Regex::new(&from_python(pattern)).unwrap();
            regex.replace_all(text, &*replacement_from_python(replacement)).into_owned()
        };
        assert_eq!(replaced(r"(\d)(x)?", "a1", r"<\1>"), "a<1>");
        assert_eq!(replaced("(?P<n>[0-9])", "a1", r"\g<n>0\g<1>"), "a101");
        assert_eq!(replaced("x", "x", "$1,000"), "$1,000");
        assert_eq!(replaced("x", "x", r"a\\b\n\t"), "a\\b\n\t");
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
        assert!(["[a", "["].iter().all(|pattern| Regex::new(&from_python(pattern)).is_err()));
    }

    /// As Python's `re` matches.
    #[test]
    fn whole_texts_are_matched() {
        for (source, matching, others) in [
            ("[q&&v]_proj", &["q_proj", "v_proj", "&_proj"][..], &["k_proj"][..]),
            ("[[q]_proj", &["q_proj", "[_proj"], &["k_proj"]),
            ("[[:alpha:]]", &["a]", ":]"], &["a", "b]"]),
            ("[]q~~]", &["]", "q", "~"], &["k"]),
            (r"[^]\-q]", &["a"], &["]", "-", "q"]),
            (r"[a\-z]", &["a", "-", "z"], &["b"]),
            ("[+--]", &["+", ",", "-"], &["a", "."]),
            ("[--0]", &["-", ".", "/", "0"], &["1", ","]),
            (r"[\d_-]", &["7", "_", "-"], &["a"]),
            (r"\[q&&v]", &["[q&&v]"], &["q"]),
            ("[a-c]", &["b"], &["-"]),
            ("(?a)q", &["q"], &["k"]),
            ("(?ai)q", &["Q"], &["k"]),
            ("(?a:q)", &["q"], &["k"]),
            ("(?a-i:q)", &["q"], &["Q"]),
            ("(?a)5$", &["5"], &["5\n"]),
            ("(?P<a>q)", &["q"], &["k"]),
            (r"q_proj\Z", &["q_proj"], &["q_proj\n", "k_proj"]),
            (r"[\<\_é]", &["<", "_", "é"], &["\\", ">"]),
        ] {
            let translated = from_python(source);
            let regex = Regex::new(&format!("^(?:{translated})$"));
            let is_match = |text: &&str| regex.as_ref().is_ok_and(|regex| regex.is_match(text).unwrap_or(false));
            assert!(regex.is_ok() && matching.iter().all(is_match), "{source}: {translated}");
            assert!(!others.iter().any(is_match), "{source}: {translated}");
        }
        for same in [r".*\.layers\.(0|1)\.[^.]*_proj", "(?i)x", "(?:a)", "[^a-z0-9_]", "[unclosed", "("] {
            assert_eq!(from_python(same), same);
        }
    }
}
