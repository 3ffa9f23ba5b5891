//! Train, validation and test: which row is in which split.

use std::fmt;
use std::str::FromStr;

use lorakit_format::rng::Key;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Result, TaskError};
use crate::json_value::canonical_object;

/// One part of a task's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training experts: eight tenths.
    Train,
    /// For choosing the best step: one tenth.
    Validation,
    /// For reported scores: one tenth.
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
    /// The row decides, not its position: adding rows to a file does not move the others, and equal rows are never in
    /// two splits. The exception is a CSV or TSV file whose column of numbers a new row turns into one of texts: all its
    /// rows are then others.
    pub fn of(fields: &Map<String, Value>, split_seed: u64) -> Split {
        let text = format!("{split_seed}\n{}", canonical_object(fields));
        let digest = Key::of_bytes(text).bits();
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
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "train" => Split::Train,
            "validation" => Split::Validation,
            "test" => Split::Test,
            "all" => Split::All,
            _ => {
                return Err(TaskError::UnknownName {
                    what: "split",
                    name: name.to_string(),
                    known: "train, validation, test, all".to_string(),
                });
            }
        })
    }
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
    fn the_split_of_a_row_is_the_same_in_every_version() {
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
    fn a_tenth_is_for_validation_and_a_tenth_for_testing() {
        let mut counts = [0; 3];
        for i in 0..10_000 {
            counts[Split::of(&fields(json!({"input": i, "output": ""})), 0) as usize] += 1;
        }
        assert!((7_850..8_150).contains(&counts[0]), "{counts:?}");
        assert!((900..1_100).contains(&counts[1]), "{counts:?}");
    }
}
