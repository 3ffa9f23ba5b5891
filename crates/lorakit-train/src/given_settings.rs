//! The settings that one source, a file or `--set`, gives.

use crate::error::{Result, TrainError};
use crate::setting_names::canonical_name;
use serde_json::{Map, Value};

/// Pairs of settings of which the second replaces the first.
const REPLACING: [(&str, &str); 2] = [("num_epochs", "max_steps"), ("warmup_ratio", "warmup_steps")];

/// The settings of one source by their names here.
pub struct GivenSettings(Map<String, Value>);

impl GivenSettings {
    /// The settings of TOML text; errors name `file`.
    ///
    /// # Errors
    /// If the text is no TOML.
    pub fn of_toml(text: &str, file: &str) -> Result<Self> {
        let given: toml::Table = toml::from_str(text).map_err(|error| invalid_file(file, &error))?;
        // JSON lacks dates, which are no setting's, and has null for NaN and infinity, which the parser of the file refuses.
        let value = |value| serde_json::to_value(value).unwrap_or_default();
        Ok(Self(given.into_iter().map(|(key, given)| (canonical_name(&key).to_owned(), value(given))).collect()))
    }

    /// Those of `--set key=value ...`, of which a later one overrides an earlier one.
    ///
    /// # Errors
    /// If one has no equals sign.
    pub fn of_assignments<S: AsRef<str>>(assignments: &[S]) -> Result<Self> {
        let pair = |assignment: &S| {
            let assignment = assignment.as_ref();
            let pair = assignment.split_once('=');
            let (key, value) = pair.ok_or_else(|| TrainError::Assignment { assignment: assignment.to_owned() })?;
            let name = canonical_name(key.trim());
            let value = parse_value(value.trim())?;
            // In Python no clipping is None, here it is 0.
            let value = if name == "max_grad_norm" && value.is_null() { 0.into() } else { value };
            Ok((name.to_owned(), value))
        };
        assignments.iter().map(pair).collect::<Result<_>>().map(Self)
    }

    /// The names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether a setting has a value, other than the one that means that it is unset.
    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null() && !is_unset(name, value))
    }

    /// Whether each of the settings that others can replace is given, and whether another of this source replaces it.
    pub fn replaced(&self) -> impl Iterator<Item = (&'static str, bool)> {
        REPLACING.into_iter().filter(|(name, _)| self.has(name)).map(|(name, by)| (name, self.has(by)))
    }

    /// Whether a setting is given in a form of transformers that the parser of a file does not take.
    pub(crate) fn is_foreign(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| is_unset(name, value) || ratio_of(name, value).is_some())
    }

    /// Overrides settings of earlier sources, also by those that replace the given ones.
    pub(crate) fn apply_to(&self, all: &mut Map<String, Value>) {
        for (_, by) in REPLACING.into_iter().filter(|(name, _)| self.has(name)) {
            all.insert(by.to_owned(), Value::Null);
        }
        for (name, value) in &self.0 {
            all.insert(name.clone(), if self.is_foreign(name) { Value::Null } else { value.clone() });
        }
        if let Some(ratio) = self.0.get("warmup_steps").and_then(|value| ratio_of("warmup_steps", value)) {
            all.insert("warmup_ratio".to_owned(), ratio.into());
        }
    }
}

/// Whether a value is transformers' default that means none.
fn is_unset(name: &str, value: &Value) -> bool {
    name == "max_steps" && value.as_f64() == Some(-1.0)
}

/// The ratio that `warmup_steps` below 1 is, as in transformers.
fn ratio_of(name: &str, value: &Value) -> Option<f64> {
    value.as_f64().filter(|ratio| name == "warmup_steps" && *ratio > 0.0 && *ratio < 1.0)
}

/// The value of `--set`: a TOML value, one of Python's True, False and None, or else a string without quotes.
fn parse_value(text: &str) -> Result<Value> {
    match text {
        "True" => return Ok(true.into()),
        "False" => return Ok(false.into()),
        "None" => return Ok(Value::Null),
        _ => {}
    }
    let value = match toml::from_str::<toml::Table>(&format!("x = {text}")) {
        Ok(mut table) => table.remove("x").unwrap_or_else(|| toml::Value::String(text.to_owned())),
        Err(_) => toml::Value::String(text.to_owned()),
    };
    Ok(serde_json::to_value(value)?)
}

/// The error of a settings file that cannot be parsed.
pub(crate) fn invalid_file(file: &str, error: &toml::de::Error) -> TrainError {
    TrainError::ConfigFile { file: file.to_owned(), reason: readable(error.to_string().trim_end()) }
}

/// A parser's message in words for users.
pub(crate) fn readable(message: &str) -> String {
    let words = [("f64", "a finite number"), ("type: null", "type: none"), ("a boolean", "true or false")];
    words.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
}
