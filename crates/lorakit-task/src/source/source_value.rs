//! JSON values whose numbers are kept as they are written in the file.
//!
//! serde_json reads numbers of 64 bits, so that 37778931862957161709568, 1e6 and 2.50 would become 3.7778931862957162e22,
//! 1000000.0 and 2.5 in a prompt or an answer.

use lorakit_format::non_finite_json::{non_finite_as_null, string_end};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Number, Value};

/// A JSON value of a data file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SourceValue {
    /// The value, with integers beyond 64 bits as texts.
    pub value: Value,
    /// The same value, with a text in place of every number that serde_json would write otherwise; None if there is none.
    pub written: Option<Value>,
    /// Whether it is a row of a file of fixed columns, which fill objects up with nulls at any depth.
    pub null_padded: bool,
    /// The columns of the row whose values cannot be read, each with its type, for messages.
    pub unreadable: Option<Arc<str>>,
}

impl From<Value> for SourceValue {
    fn from(value: Value) -> Self {
        SourceValue { value, written: None, null_padded: false, unreadable: None }
    }
}

impl SourceValue {
    /// Parses one JSON document, which Python may have written: NaN and infinities are null.
    pub fn parse(text: &str) -> serde_json::Result<SourceValue> {
        SourceValue::parse_strict(text)
            .or_else(|error| without_non_finite(text).map_or(Err(error), |text| SourceValue::parse_strict(&text)))
    }

    fn parse_strict(text: &str) -> serde_json::Result<SourceValue> {
        let numbers = rewritten_numbers(text);
        if numbers.is_empty() {
            return Ok(serde_json::from_str::<Value>(text)?.into());
        }
        let long: Vec<Range<usize>> =
            numbers.iter().filter(|range| is_integer(&text[(*range).clone()])).cloned().collect();
        let value: Value = serde_json::from_str(&quoted(text, &long))?;
        let written = Some(serde_json::from_str(&quoted(text, &numbers))?);
        Ok(SourceValue { written, ..SourceValue::from(value) })
    }
}

/// The JSON with null in place of NaN and infinities, which JSON does not have; None if it has none of them.
pub(crate) fn without_non_finite(text: &str) -> Option<String> {
    match non_finite_as_null(text.as_bytes()) {
        Cow::Borrowed(_) => None,
        Cow::Owned(replaced) => String::from_utf8(replaced).ok(),
    }
}

/// The text with the numbers at `ranges` in quotes.
fn quoted(text: &str, ranges: &[Range<usize>]) -> String {
    let mut result = String::with_capacity(text.len() + 2 * ranges.len());
    let mut end = 0;
    for range in ranges {
        result.push_str(&text[end..range.start]);
        result.push('"');
        result.push_str(&text[range.clone()]);
        result.push('"');
        end = range.end;
    }
    result.push_str(&text[end..]);
    result
}

/// Where the numbers are that serde_json would write otherwise than the text does. Text that is not JSON gives no error
/// here: the parser reports it.
fn rewritten_numbers(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
                if is_rewritten(&text[at..at + length]) {
                    found.push(at..at + length);
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    found
}

/// The most digits of an integer that always fits 64 bits.
const SAFE_DIGITS: usize = 18;

fn is_rewritten(number: &str) -> bool {
    if number.len() <= SAFE_DIGITS && number != "-0" && is_integer(number) {
        return false;
    }
    match serde_json::from_str::<Number>(number) {
        Ok(parsed) => parsed.to_string() != number,
        // An integer too long even for a float. Anything else is invalid JSON, which the parser reports.
        Err(_) => is_integer(number),
    }
}

/// Whether a number has no fraction and no exponent.
fn is_integer(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty()
        && (digits == "0" || !digits.starts_with('0'))
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_kept_as_they_are_written() {
        let long = "9".repeat(400);
        let text =
            format!(r#"{{"a": [37778931862957161709568, 2.50, 1e6, 1e22, 5, "1e6 \" 2.50"], "b": {long}, "c": -0}}"#);
        let parsed = SourceValue::parse(&text).unwrap();
        let expected =
            json!({"a": ["37778931862957161709568", 2.5, 1e6, 1e22, 5, "1e6 \" 2.50"], "b": long, "c": "-0"});
        assert_eq!(parsed.value, expected);
        let written =
            json!({"a": ["37778931862957161709568", "2.50", "1e6", "1e22", 5, "1e6 \" 2.50"], "b": long, "c": "-0"});
        assert_eq!(parsed.written.unwrap(), written);
    }

    #[test]
    fn ordinary_numbers_need_no_second_value() {
        let text = r#"[0, -1, 2.5, 1000000.0, 18446744073709551615, -9223372036854775808, 0.1]"#;
        assert_eq!(SourceValue::parse(text).unwrap().written, None);
        assert_eq!(SourceValue::parse("18446744073709551616").unwrap().value, json!("18446744073709551616"));
    }

    #[test]
    fn numbers_that_only_python_reads_are_null() {
        let parsed = SourceValue::parse(r#"{"a": [NaN, -Infinity, 2.50], "b": "NaN"}"#).unwrap();
        assert_eq!(parsed.value, json!({"a": [null, null, 2.5], "b": "NaN"}));
        assert_eq!(parsed.written.unwrap(), json!({"a": [null, null, "2.50"], "b": "NaN"}));
    }

    #[test]
    fn text_that_is_not_json_is_refused() {
        for text in [
            "01",
            "1.",
            "-",
            "1e",
            "+1",
            "1e400",
            "[1.50",
            "{\"a\": 2.50,}",
            "\"\\",
            "1-2",
            "--1",
            "00000000000000000001",
            "[NaN",
            "NaNs",
        ] {
            assert!(SourceValue::parse(text).is_err(), "{text}");
        }
    }
}
