//! Patterns of paths, as fsspec's `glob` takes them and Hugging Face's `datasets` documents them for `data_files`.
//!
//! `*` stands for any text and `?` for one character within a segment, `[ab-d]` for one character of a set and `[!ab-d]` for
//! one outside it. `**` as a whole segment stands for any number of segments, and elsewhere for any text, slashes included.
//! Everything else, braces among it, stands for itself.

/// A part of a pattern.
enum Token {
    Literal(char),
    /// One character of a segment.
    Any,
    /// One character of a segment that is, or is not, within one of these ranges.
    Set {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
    /// Any text within a segment.
    Star,
    /// Any text.
    DoubleStar,
    /// Any number of segments, each with its slash.
    Segments,
}

impl Token {
    /// Whether the token can stand for `c`, or for text with `c` in it.
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Literal(literal) => *literal == c,
            Self::Any | Self::Star => c != '/',
            Self::Set { ranges, negated } => {
                c != '/' && ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
            }
            Self::DoubleStar | Self::Segments => true,
        }
    }

    /// Whether it stands for text.
    fn repeats(&self) -> bool {
        matches!(self, Self::Star | Self::DoubleStar | Self::Segments)
    }
}

/// Whether the whole of a path has the form of a pattern, in time that grows with the product of their lengths.
pub fn matches(pattern: &str, path: &str) -> bool {
    let tokens = tokens(pattern);
    // Whether the path so far can end before each token, the last place being behind all.
    let mut reached = vec![false; tokens.len() + 1];
    reached[0] = true;
    pass_empty(&tokens, &mut reached, true);
    for c in path.chars() {
        let mut next = vec![false; tokens.len() + 1];
        for (at, token) in tokens.iter().enumerate().filter(|(at, token)| reached[*at] && token.takes(c)) {
            next[if token.repeats() { at } else { at + 1 }] = true;
        }
        pass_empty(&tokens, &mut next, c == '/');
        reached = next;
    }
    reached[tokens.len()]
}

/// Passes over tokens that may stand for nothing more. Whole segments end only where one begins.
fn pass_empty(tokens: &[Token], reached: &mut [bool], segment_begins: bool) {
    for (at, token) in tokens.iter().enumerate() {
        let ends =
            matches!(token, Token::Segments) && segment_begins || matches!(token, Token::Star | Token::DoubleStar);
        reached[at + 1] |= reached[at] && ends;
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let pattern: Vec<char> = pattern.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(c) = pattern.get(at) {
        let rest = &pattern[at + 1..];
        let begins = at == 0 || pattern[at - 1] == '/';
        let (token, length) = match c {
            '*' if begins && rest.starts_with(&['*', '/']) => (Token::Segments, 3),
            '*' if rest.first() == Some(&'*') => (Token::DoubleStar, 2),
            '*' => (Token::Star, 1),
            '?' => (Token::Any, 1),
            '[' => set(rest).map_or((Token::Literal('['), 1), |(set, length)| (set, 1 + length)),
            literal => (Token::Literal(*literal), 1),
        };
        tokens.push(token);
        at += length;
    }
    tokens
}

/// The set after a bracket, with the length of its text; None where no bracket closes it within the segment.
fn set(text: &[char]) -> Option<(Token, usize)> {
    let negated = text.first() == Some(&'!');
    let start = usize::from(negated);
    // A bracket that comes first is one of the set.
    let end = text.iter().enumerate().skip(start + 1).find(|(_, c)| **c == ']').map(|(at, _)| at)?;
    let mut inner = &text[start..end];
    if inner.contains(&'/') {
        return None;
    }
    let mut ranges = Vec::new();
    while let Some(first) = inner.first() {
        let range = inner.get(1) == Some(&'-') && inner.len() > 2;
        let (last, length) = if range { (inner[2], 3) } else { (*first, 1) };
        ranges.push((*first, last));
        inner = &inner[length..];
    }
    Some((Token::Set { ranges, negated }, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails unless `pattern` matches all of `paths`, and none of `others`.
    fn check(pattern: &str, paths: &[&str], others: &[&str]) {
        paths.iter().for_each(|path| assert!(matches(pattern, path), "{pattern} {path}"));
        others.iter().for_each(|path| assert!(!matches(pattern, path), "{pattern} {path}"));
    }

    /// As `re.match(glob_translate(pattern), path)` of fsspec 2026.9 says.
    #[test]
    fn patterns_are_those_of_fsspec() {
        check(
            "**/train.jsonl",
            &["train.jsonl", "a/train.jsonl", "a/b/train.jsonl"],
            &["pretrain.jsonl", "a/pretrain.jsonl"],
        );
        check("deep/**/x", &["deep/x", "deep/er/x", "deep/a/b/x"], &["deepx", "deep/ax", "deep/a/bx", "x"]);
        check("data/**", &["data/a", "data/a/b"], &["data", "other/a"]);
        check("*.csv", &["a.csv", ".csv"], &["a/b.csv", "a.csv.gz"]);
        check("a/*/c", &["a/b/c"], &["a/c", "a/b/b/c"]);
        check("a?c", &["abc", "aöc"], &["ac", "a/c", "abbc"]);
        check("part-[0-3a].csv", &["part-2.csv", "part-a.csv"], &["part-4.csv", "part-.csv", "part-22.csv"]);
        check("[!a-c]x", &["dx", "]x"], &["bx", "x"]);
        check("[]-]x", &["]x", "-x"], &["ax"]);
        check("**/train[-._ 0-9]*", &["a/train-0", "train.csv"], &["a/trains", "retrain-0"]);
        check("[ab", &["[ab"], &["a"]);
        check("{a,b}.csv", &["{a,b}.csv"], &["a.csv"]);
        check("", &[""], &["a"]);
    }

    /// fsspec refuses these now; `datasets` documents the first.
    #[test]
    fn two_stars_within_a_segment_stand_for_any_text() {
        check("**.csv", &["a.csv", "a/b.csv"], &["a.csv.gz"]);
        check("a**c", &["ac", "abc", "a/b/c"], &["a/b/cd"]);
    }

    #[test]
    fn many_stars_do_not_backtrack() {
        let pattern = "*a".repeat(40);
        assert!(!matches(&format!("{pattern}b"), &"a".repeat(400)));
        assert!(matches(&pattern, &"a".repeat(400)));
    }
}
