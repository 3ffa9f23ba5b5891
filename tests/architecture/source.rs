//! Rust source as text, without comments, literals and test-only items.

/// The code of a file, with comments removed, string and character literals emptied, and `#[cfg(test)]` items removed.
pub fn code(text: &str) -> String {
    without_tests(&without_literals(text))
}

/// Removes comments and the content of literals.
fn without_literals(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let identifier_before = at > 0 && (bytes[at - 1].is_alphanumeric() || bytes[at - 1] == '_');
        at += match rest {
            ['/', '/', ..] => length_until(rest, |r| r[0] == '\n'),
            ['/', '*', ..] => block_comment(rest),
            ['r', '"' | '#', ..] if !identifier_before && is_raw_string(rest) => {
                out.push_str("\"\"");
                raw_string(rest)
            }
            ['"', ..] => {
                out.push_str("\"\"");
                quoted(rest)
            }
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => {
                out.push_str("' '");
                quoted(rest)
            }
            [first, ..] => {
                out.push(*first);
                1
            }
            [] => break,
        };
    }
    out
}

fn length_until(text: &[char], end: impl Fn(&[char]) -> bool) -> usize {
    (0..text.len()).find(|at| end(&text[*at..])).unwrap_or(text.len())
}

fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn hashes(text: &[char]) -> usize {
    text[1..].iter().take_while(|char| **char == '#').count()
}

fn is_raw_string(text: &[char]) -> bool {
    text.get(1 + hashes(text)) == Some(&'"')
}

fn raw_string(text: &[char]) -> usize {
    let hashes = hashes(text);
    let start = hashes + 2;
    let closes =
        |rest: &[char]| rest[0] == '"' && rest[1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    start + length_until(&text[start..], closes) + 1 + hashes
}

/// The length of a quoted literal with escapes.
fn quoted(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != text[0] {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The text without the items that follow `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    let mut parts = text.split("#[cfg(test)]");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(&part[item_length(part)..]);
    }
    out
}

/// The length of the item at the start of a text: up to its closing brace, or to a semicolon before any brace.
fn item_length(text: &str) -> usize {
    let mut depth = 0usize;
    for (at, char) in text.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn code_is_what_is_left_of_a_file() {
    let text =
        "a; // b\n/* c /* d */ */ e(\"f\\\"\", r#\"g\"h\"#, 'i', '\\'', &'j ());\n#[cfg(test)]\nmod tests { k {} }\nl";
    assert_eq!(code(text), "a; \n e(\"\", \"\", ' ', ' ', &'j ());\n\nl");
}
