//! Train, validation and test: which rows are which.

use std::fmt;
use std::str::FromStr;

use anyhow::bail;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A part of a task's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What experts are trained on: eight tenths.
    Train,
    /// What the best step is chosen by: one tenth.
    Validation,
    /// What scores are reported on: one tenth.
    Test,
    /// Every row, in file order.
    All,
}

impl Split {
    /// The name used in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
            Split::All => "all",
        }
    }

    /// The split of a row: the first eight bytes of sha256(`SEED`, newline, canonical JSON of the
    /// row), big-endian, modulo ten; 0 to 7 are train, 8 is validation, 9 is test.
    ///
    /// The row decides, not its position, so that adding rows to a file moves none of the others,
    /// and equal rows never lie on both sides of the border.
    pub fn of(fields: &Map<String, Value>, split_seed: u64) -> Split {
        let mut text = format!("{split_seed}\n");
        write_object(fields, &mut text);
        let digest = Sha256::digest(text.as_bytes());
        let bucket = digest[..8].iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte)) % 10;
        match bucket {
            0..=7 => Split::Train,
            8 => Split::Validation,
            _ => Split::Test,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Split {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "train" => Split::Train,
            "validation" => Split::Validation,
            "test" => Split::Test,
            "all" => Split::All,
            _ => bail!("unknown split `{name}`; the splits are train, validation, test, all"),
        })
    }
}

/// JSON with sorted keys and no white space: one text for one value, however a file spells it.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => write_object(fields, text),
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn write_object(fields: &Map<String, Value>, text: &mut String) {
    let mut entries: Vec<_> = fields.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    text.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(&Value::String(key.clone()).to_string());
        text.push(':');
        write(value, text);
    }
    text.push('}');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let text = canonical(&json!({"b": [1, 2.5, null], "a": {"d": "\n", "c": true}}));
        assert_eq!(text, r#"{"a":{"c":true,"d":"\n"},"b":[1,2.5,null]}"#);
    }

    #[test]
    fn a_split_never_changes_between_versions() {
        // Computed with Python:
        // int.from_bytes(hashlib.sha256(f'{seed}\n{json}'.encode()).digest()[:8], 'big') % 10
        let splits = |seed| -> String {
            let row = |i| fields(json!({"output": "o", "input": format!("row {i}")}));
            let letter = |split| match split {
                Split::Train => 't',
                Split::Validation => 'v',
                _ => 'T',
            };
            (0..20).map(|i| letter(Split::of(&row(i), seed))).collect()
        };
        assert_eq!(splits(0), "vtvtTttttttttvtttttt");
        assert_eq!(splits(7), "ttvttttttttTttvtTtTt");
    }

    #[test]
    fn about_a_tenth_is_for_validation_and_a_tenth_for_the_test() {
        let mut counts = [0; 3];
        for i in 0..10_000 {
            counts[Split::of(&fields(json!({"input": i, "output": ""})), 0) as usize] += 1;
        }
        assert!((7_850..8_150).contains(&counts[0]), "{counts:?}");
        assert!((900..1_100).contains(&counts[1]), "{counts:?}");
    }
}
