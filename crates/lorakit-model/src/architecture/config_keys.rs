//! Reading the keys of a `config.json`; errors name the file and the key.

use crate::error::{ModelError, Result};
use lorakit_format::non_finite_json::non_finite_as_null;
use serde_json::Value;

/// A JSON object of a `config.json`: the whole file, or an object within it.
#[derive(Clone)]
pub(crate) struct ConfigKeys {
    object: Value,
    file: String,
}

impl ConfigKeys {
    /// Parses the text of `file`. Infinity and NaN, which Python reads, are as null.
    pub(crate) fn parse(text: &str, file: &str) -> Result<Self> {
        let object = serde_json::from_slice(&non_finite_as_null(text.as_bytes()))
            .map_err(|source| ModelError::Json { file: file.to_owned(), expected: "not valid JSON", source })?;
        Ok(Self { object, file: file.to_owned() })
    }

    /// The keys of a JSON object that stands for `file`.
    pub(crate) fn of(object: Value, file: &str) -> Self {
        Self { object, file: file.to_owned() }
    }

    /// The JSON object.
    pub(crate) fn into_value(self) -> Value {
        self.object
    }

    /// The same with values for keys that the file does not have.
    pub(crate) fn with_defaults(&self, defaults: Value) -> Self {
        let mut object = self.object.clone();
        if let (Some(own), Value::Object(defaults)) = (object.as_object_mut(), defaults) {
            defaults.into_iter().for_each(|(key, value)| {
                own.entry(key).or_insert(value);
            });
        }
        Self { object, file: self.file.clone() }
    }

    /// The same with the values of `other` in place of its own.
    pub(crate) fn updated_with(&self, other: &Self) -> Self {
        other.with_defaults(self.object.clone())
    }

    /// The same with another value of a key.
    pub(crate) fn with_value(mut self, key: &str, value: impl Into<Value>) -> Self {
        if let Some(object) = self.object.as_object_mut() {
            object.insert(key.to_owned(), value.into());
        }
        self
    }

    /// The same without some keys.
    pub(crate) fn without(mut self, keys: &[&str]) -> Self {
        if let Some(object) = self.object.as_object_mut() {
            keys.iter().for_each(|key| {
                object.remove(*key);
            });
        }
        self
    }

    /// A message about this file.
    pub(crate) fn message(&self, sentence: &str) -> String {
        format!("{}: {sentence}", self.file)
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

    /// The object under a key; none where the key is absent or null.
    pub(crate) fn nested(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(object @ Value::Object(_)) => Ok(Some(Self { object: object.clone(), file: self.file.clone() })),
            Some(value) => Err(self.error(format!("key `{key}` is {value}, expected an object"))),
        }
    }

    /// The same, or an object without keys.
    pub(crate) fn nested_or_empty(&self, key: &str) -> Result<Self> {
        let empty = || Self { object: Value::Object(Default::default()), file: self.file.clone() };
        Ok(self.nested(key)?.unwrap_or_else(empty))
    }

    /// Whether the object has no keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.object.as_object().is_none_or(serde_json::Map::is_empty)
    }

    /// A whole number above zero and below 2^32.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n > 0 && n < 1 << 32 => Ok(Some(n as usize)),
            _ => Err(self.error(format!("key `{key}` is {value}, expected a whole number above zero and below 2^32"))),
        }
    }

    /// A whole number, which may be zero or below.
    pub(crate) fn whole_number(&self, key: &str, default: i64) -> Result<i64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_i64().ok_or_else(|| self.error(format!("key `{key}` is {value}, expected a whole number")))
    }

    /// A whole number above zero that must be there.
    pub(crate) fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(format!("key `{key}` is missing")))
    }

    /// A finite number above zero.
    pub(crate) fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.error(format!("key `{key}` is {value}, expected a number above zero"))),
        }
    }

    /// The same; none where the value is null, and `default` where the key is absent.
    pub(crate) fn number_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        match (self.has_key(key), self.get(key)) {
            (false, _) => Ok(default),
            (true, None) => Ok(None),
            (true, Some(_)) => self.number(key, 1.0).map(Some),
        }
    }

    /// A list of `count` finite numbers above zero.
    pub(crate) fn divisors(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let numbers: Option<Vec<f64>> =
            self.get(key).and_then(Value::as_array).and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.filter(|list| list.len() == count && list.iter().all(|&x| x.is_finite() && x > 0.0)).ok_or_else(|| {
            let found = self
                .get(key)
                .and_then(Value::as_array)
                .map_or_else(|| "not a list".to_owned(), |list| format!("a list of {}", list.len()));
            self.error(format!("key `{key}` is {found}, expected {count} numbers above zero, one for each frequency"))
        })
    }

    /// A list with an item for each of `layers` layers; none where the key is absent or null.
    pub(crate) fn of_layers(&self, key: &str, layers: usize) -> Result<Option<&[Value]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_array() {
            Some(list) if list.len() == layers => Ok(Some(list)),
            Some(list) => Err(self.error(format!("key `{key}` has {} items for {layers} layers", list.len()))),
            None => Err(self.error(format!("key `{key}` is {value}, expected a list with an item for each layer"))),
        }
    }

    /// The same of a list that may have more items, for layers that there are not.
    pub(crate) fn of_first_layers(&self, key: &str, layers: usize) -> Result<Option<&[Value]>> {
        match self.get(key).and_then(Value::as_array) {
            Some(list) if list.len() > layers => Ok(Some(&list[..layers])),
            _ => self.of_layers(key, layers),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(format!("key `{key}` is {value}, expected true or false")))
    }

    /// A text; none where the key is absent or null.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(format!("key `{key}` is {value}, expected a text")))
    }

    /// Fails where the activation of the MLP is not SiLU, which transformers also calls swish.
    pub(crate) fn expect_silu(&self) -> Result<()> {
        if self.text("hidden_act")? == Some("swish") { Ok(()) } else { self.expect_text("hidden_act", "silu") }
    }

    /// Fails where a key has a text other than `supported`.
    pub(crate) fn expect_text(&self, key: &str, supported: &str) -> Result<()> {
        match self.text(key)? {
            Some(value) if value != supported => {
                Err(self.error(format!("key `{key}` is `{value}`; supported is {supported} only")))
            }
            _ => Ok(()),
        }
    }
}
