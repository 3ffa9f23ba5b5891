//! Regular expressions of Python in the syntax of fancy_regex.

/// The expression that matches as `source` does in Python. Within `[...]`, the characters `[`, `&&`, `--` and `~~` stand for
/// themselves there, and combine sets here; the flag `a` restricts `\w` to ASCII there, and is unknown here.
pub(crate) fn from_python(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let (mut pattern, mut at) = (String::with_capacity(source.len()), 0);
    while at < chars.len() {
        let (text, end) = match chars[at] {
            '\\' => (chars[at..].iter().take(2).collect(), at + 2),
            '[' => class(&chars, at).unwrap_or_else(|| (chars[at..].iter().collect(), chars.len())),
            '(' => without_ascii_flag(&chars, at).unwrap_or(("(".to_owned(), at + 1)),
            other => (other.to_string(), at + 1),
        };
        pattern.push_str(&text);
        at = end;
    }
    pattern
}

/// The flags of a group that begins at `start`, such as `(?ai:`, without `a`, and where they end; none where they lack it.
fn without_ascii_flag(chars: &[char], start: usize) -> Option<(String, usize)> {
    let flags: String =
        chars.get(start..)?.strip_prefix(&['(', '?'])?.iter().take_while(|c| c.is_alphabetic()).collect();
    let end = start + 2 + flags.chars().count();
    if !flags.contains('a') || !matches!(chars.get(end), Some(')' | ':' | '-')) {
        return None;
    }
    match (flags.replace('a', ""), chars[end]) {
        (none, ')') if none.is_empty() => Some((String::new(), end + 1)),
        (others, _) => Some((format!("(?{others}"), end)),
    }
}

/// A member of a class.
struct Member {
    text: String,
    /// The character, if it is not an escape with a meaning of its own.
    literal: Option<char>,
    /// The position after it.
    end: usize,
}

impl Member {
    fn at(chars: &[char], at: usize) -> Option<Self> {
        let (literal, end) = match *chars.get(at)? {
            '\\' => (*chars.get(at + 1)?, at + 2),
            literal => (literal, at + 1),
        };
        if end == at + 2 && literal.is_alphanumeric() {
            return Some(Self { text: format!("\\{literal}"), literal: None, end });
        }
        let text = if "[]^\\".contains(literal) { format!("\\{literal}") } else { literal.to_string() };
        Some(Self { text, literal: Some(literal), end })
    }

    fn is(&self, literal: char) -> bool {
        self.literal == Some(literal)
    }
}

/// The class that begins at `start`, and where it ends; none if it does not end.
fn class(chars: &[char], start: usize) -> Option<(String, usize)> {
    let is_negated = chars.get(start + 1) == Some(&'^');
    let first = start + 1 + usize::from(is_negated);
    // A hyphen stands for itself at the end, and a single `&` or `~` anywhere.
    let (mut members, mut at, mut apart) = (String::new(), first, [('&', false), ('~', false), ('-', false)]);
    let mut set_apart = |literal: char| {
        let found = apart.iter_mut().find(|(known, _)| *known == literal);
        found.map(|(_, is_there)| *is_there = true).is_some()
    };
    while at == first || chars.get(at) != Some(&']') {
        let member = Member::at(chars, at)?;
        let is_range =
            chars.get(member.end) == Some(&'-') && chars.get(member.end + 1).is_some_and(|next| *next != ']');
        if !is_range {
            at = member.end;
            if !member.literal.is_some_and(&mut set_apart) {
                members.push_str(&member.text);
            }
            continue;
        }
        let last = Member::at(chars, member.end + 1)?;
        at = last.end;
        // A range that a hyphen begins or ends is one without it, and the hyphen.
        let hyphens = [member.is('-'), last.is('-')];
        if hyphens != [false, false] {
            set_apart('-');
        }
        match hyphens {
            [false, false] => members.push_str(&format!("{}-{}", member.text, last.text)),
            [true, false] => members.push_str(&format!(".-{}", last.text)),
            [false, true] => members.push_str(&format!("{}-,", member.text)),
            [true, true] => {}
        }
    }
    members.extend(apart.iter().filter(|(_, is_there)| *is_there).map(|(literal, _)| *literal));
    Some((format!("[{}{members}]", if is_negated { "^" } else { "" }), at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python's `re` matches.
    #[test]
    fn operators_of_sets_are_characters() {
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
            ("(?P<a>q)", &["q"], &["k"]),
        ] {
            let translated = from_python(source);
            let regex = fancy_regex::Regex::new(&format!("^(?:{translated})$"));
            let is_match = |text: &&str| regex.as_ref().is_ok_and(|regex| regex.is_match(text).unwrap_or(false));
            assert!(regex.is_ok() && matching.iter().all(is_match), "{source}: {translated}");
            assert!(!others.iter().any(is_match), "{source}: {translated}");
        }
        for same in [r".*\.layers\.(0|1)\.[^.]*_proj", "(?i)x", "(?:a)", "[^a-z0-9_]", "[unclosed", "("] {
            assert_eq!(from_python(same), same);
        }
    }
}
