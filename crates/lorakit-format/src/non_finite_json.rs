//! NaN and infinities in JSON that Python wrote, which JSON does not have.

use std::borrow::Cow;

/// What Python writes for them.
pub const NON_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The JSON with null in place of each of [`NON_FINITE`], as files of Hugging Face's libraries may have them.
pub fn non_finite_as_null(json: &[u8]) -> Cow<'_, [u8]> {
    replace_non_finite(json, |_| "null".to_owned())
}

/// The JSON with other JSON in place of each of [`NON_FINITE`] that is not within a string.
pub fn replace_non_finite(json: &[u8], with: impl Fn(&str) -> String) -> Cow<'_, [u8]> {
    let (mut replaced, mut copied, mut at) = (Vec::new(), 0, 0);
    while at < json.len() {
        if json[at] == b'"' {
            at = string_end(json, at);
            continue;
        }
        match NON_FINITE.iter().find(|word| json[at..].starts_with(word.as_bytes())) {
            Some(word) => {
                replaced.extend_from_slice(&json[copied..at]);
                replaced.extend_from_slice(with(word).as_bytes());
                at += word.len();
                copied = at;
            }
            None => at += 1,
        }
    }
    if copied == 0 {
        return json.into();
    }
    replaced.extend_from_slice(&json[copied..]);
    replaced.into()
}

/// The position after a string of JSON that begins at `start`; the end, if the string has none.
pub fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < json.len() {
        match json[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_does_not_have_are_null_outside_strings() {
        let null = |json: &'static str| String::from_utf8_lossy(&non_finite_as_null(json.as_bytes())).into_owned();
        assert_eq!(null(r#"{"a":[0.0,Infinity],"b":-Infinity,"c":NaN}"#), r#"{"a":[0.0,null],"b":null,"c":null}"#);
        let texts = r#"{"NaN": "Infinity \" NaN", "x\\": 1}"#;
        assert!(matches!(non_finite_as_null(texts.as_bytes()), Cow::Borrowed(_)));
        assert_eq!(null("Infinity"), "null");
        assert_eq!(null(r#"["cut\"#), r#"["cut\"#);
    }

    #[test]
    fn each_may_become_something_else() {
        let quoted = replace_non_finite(b"[-Infinity, NaN]", |word| format!("\"{word}\""));
        assert_eq!(quoted.as_ref(), br#"["-Infinity", "NaN"]"#);
    }
}
