//! Reading the keys of a `config.json`; errors name the file and the key.

use crate::error::{ModelError, Result};
use serde_json::Value;

/// A JSON object of a `config.json`: the whole file, or an object within it.
pub(crate) struct ConfigKeys {
    object: Value,
    file: String,
}

impl ConfigKeys {
    /// Parses the text of `file`.
    pub(crate) fn parse(text: &str, file: &str) -> Result<Self> {
        let object = serde_json::from_str(text).map_err(|source| ModelError::Json {
            file: file.to_owned(),
            expected: "not valid JSON",
            source,
        })?;
        Ok(Self { object, file: file.to_owned() })
    }

    /// An error of this file.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Config { file: self.file.clone(), reason: reason.into() }
    }

    /// The value of a key; none where it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is in the file, if only as null.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.object.get(key).is_some()
    }

    /// The object under a key.
    pub(crate) fn nested(&self, key: &str) -> Option<Self> {
        Some(Self { object: self.get(key)?.clone(), file: self.file.clone() })
    }

    /// A whole number above zero.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n > 0 && n < 1 << 32 => Ok(Some(n as usize)),
            _ => Err(self.error(format!("key '{key}' is {value}, expected a whole number above zero"))),
        }
    }

    /// A whole number above zero that must be there.
    pub(crate) fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(format!("key '{key}' is missing")))
    }

    /// A finite number above zero.
    pub(crate) fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.error(format!("key '{key}' is {value}, expected a number above zero"))),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(format!("key '{key}' is {value}, expected true or false")))
    }

    /// A text; none where the value is something else.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Fails where a key has a text other than `supported`.
    pub(crate) fn expect_text(&self, key: &str, supported: &str) -> Result<()> {
        match self.text(key) {
            Some(value) if value != supported => {
                Err(self.error(format!("key '{key}' is '{value}'; supported is {supported} only")))
            }
            _ => Ok(()),
        }
    }
}
