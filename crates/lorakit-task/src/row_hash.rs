//! Hashes that tell whether two tasks share rows.

use lorakit_format::hash_sketch::HashSketch;
use serde_json::{Map, Value};

use crate::json_value::canonical_object;
use crate::split::Split;
use crate::task::Task;

impl Task {
    /// The hash of each row of a split, by its fields alone: task, template, file name and file format do not matter.
    pub fn row_hashes(&self, split: Split) -> impl Iterator<Item = u64> {
        self.rows_of(split).map(|row| hash(&row.fields))
    }
}

/// The hash of a row's fields. Numbers and their texts are one, and so are null and an absent field: formats such as CSV do
/// not distinguish them.
fn hash(fields: &Map<String, Value>) -> u64 {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::Bool(_) | Value::Number(_) => Some(Value::String(value.to_string())),
        other => Some(other.clone()),
    };
    let fields = fields.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect();
    HashSketch::hash(canonical_object(&fields).as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_told_apart_by_their_values() {
        let hash = |value: Value| hash(value.as_object().unwrap());
        let row = hash(json!({"input": "a", "output": 4}));
        assert_eq!(row, hash(json!({"output": "4", "input": "a", "id": null})));
        assert_ne!(row, hash(json!({"input": "a", "output": 5})));
    }
}
