//! Parts of records whose form another crate defines.

use lorakit_format::hash::sha256;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{AdapterError, Result};

/// A part of a record whose form belongs to whatever wrote it, such as the settings of a trainer: it is made from a type,
/// read as a type, and kept as JSON in between. The default is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpaqueRecord(Value);

impl OpaqueRecord {
    /// The record of a value.
    ///
    /// # Errors
    /// If the value cannot be written as JSON.
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        serde_json::to_value(value).map(Self).map_err(AdapterError::Serialize)
    }

    /// Reads the record as a type.
    ///
    /// # Errors
    /// If it has another form.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.0).map_err(AdapterError::OpaqueRecord)
    }

    /// Reads one field of an object as a type; `None` if the record has no such field or it is null.
    ///
    /// # Errors
    /// If the field has another form.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(AdapterError::OpaqueRecord),
        }
    }

    /// The SHA-256 of the record's JSON text without whitespace.
    pub fn sha256(&self) -> String {
        sha256(self.0.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_text_stays_as_it_was_and_fields_are_typed() {
        let text = r#"{"b":[0.10000000149011612,null],"a":{"z":1,"y":18446744073709551615},"n":null}"#;
        let record: OpaqueRecord = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(record.sha256(), sha256(text.as_bytes()));
        assert_eq!(record.field::<Vec<Option<f64>>>("b").unwrap(), Some(vec![Some(0.10000000149011612), None]));
        assert_eq!(record.field::<bool>("n").unwrap(), None);
        assert!(record.field::<bool>("a").is_err());
        assert_eq!(OpaqueRecord::default().field::<bool>("a").unwrap(), None);
        assert_eq!(OpaqueRecord::new(&record.read::<Value>().unwrap()).unwrap(), record);
    }
}
