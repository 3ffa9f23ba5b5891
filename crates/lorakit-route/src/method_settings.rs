//! Settings as they are typed: `key=value` pairs, separated by commas.
//!
//! A method's settings are a struct with serde's derives. [`read_over`] lays what is typed over an instance that holds the
//! defaults, and [`write`] prints an instance, so that parsing, defaults and display come from the struct alone.

use crate::error::{Result, RouteError, listed};
use crate::settings_text::{Pairs, from_pairs, to_pairs};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{self, Display};

/// The settings of a method.
pub(crate) trait Settings: Serialize + DeserializeOwned {
    /// Other names that settings may be typed by, with those that they are written by.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// Checks ranges; the error says which setting is out of range.
    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// Reads the settings of `method` from what follows its name, over their defaults.
///
/// # Errors
/// An unknown setting, one that is given twice, or a value that cannot be read or is out of range. The error lists the
/// settings with their defaults.
pub(crate) fn read<S: Settings + Default>(method: &str, typed: Option<&str>) -> Result<S> {
    read_over(method, &S::default(), |_| true, typed)
}

/// As [`read`], over other defaults, for a method that has only those settings whose keys `has` accepts.
pub(crate) fn read_over<S: Settings>(
    method: &str,
    defaults: &S,
    has: impl Fn(&str) -> bool,
    typed: Option<&str>,
) -> Result<S> {
    read_pairs(method, to_pairs(defaults), has, typed_by_key::<S>(typed), |pairs| {
        let settings = from_pairs::<S>(pairs)?;
        settings.validate().map(|()| settings)
    })
}

/// As [`read_over`], from pairs: `read` receives all `defaults`, with what is typed in place of some.
pub(crate) fn read_pairs<T>(
    method: &str,
    defaults: std::result::Result<Pairs, String>,
    has: impl Fn(&str) -> bool,
    typed: Vec<(&str, &str)>,
    read: impl FnOnce(Pairs) -> std::result::Result<T, String>,
) -> Result<T> {
    let invalid = |problem, known| RouteError::InvalidSetting { method: method.to_owned(), problem, known };
    let all = defaults.map_err(|problem| invalid(problem, String::new()))?;
    let known: Vec<&(&str, String)> = all.iter().filter(|(key, _)| has(key)).collect();
    let outcome = given_once(&known, &typed).and_then(|()| {
        let value = |(key, default): &(&'static str, String)| {
            let typed = typed.iter().find(|(typed, _)| typed == key).filter(|_| has(key));
            (*key, typed.map_or_else(|| default.clone(), |(_, value)| (*value).to_owned()))
        };
        read(all.iter().map(value).collect())
    });
    outcome.map_err(|problem| invalid(problem, listed(known.iter().map(|(key, default)| format!("{key}={default}")))))
}

/// The pairs of a text, by the keys that settings are written by.
pub(crate) fn typed_by_key<S: Settings>(typed: Option<&str>) -> Vec<(&str, &str)> {
    let key = |typed| S::ALIASES.iter().find(|(alias, _)| *alias == typed).map_or(typed, |(_, key)| *key);
    typed_pairs(typed).into_iter().map(|(typed, value)| (key(typed), value)).collect()
}

/// The pairs of a text; a key without a value has an empty one.
pub(crate) fn typed_pairs(typed: Option<&str>) -> Vec<(&str, &str)> {
    let pairs = typed.into_iter().flat_map(|typed| typed.split(','));
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (key.trim(), value.trim())).collect()
}

/// Checks that what is typed is known, and typed once.
fn given_once(known: &[&(&str, String)], typed: &[(&str, &str)]) -> std::result::Result<(), String> {
    for (index, (key, _)) in typed.iter().enumerate() {
        if !known.iter().any(|(known, _)| known == key) {
            return Err(format!("unknown setting `{key}`"));
        }
        if typed[..index].iter().any(|(before, _)| before == key) {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(())
}

/// Settings as they are typed, or why there is no text of them.
pub(crate) fn text_of(pairs: std::result::Result<Pairs, String>) -> String {
    pairs.map_or_else(|problem| problem, joined)
}

/// Pairs as they are typed.
pub(crate) fn joined(pairs: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// A method with all its settings, as it can be typed.
pub(crate) fn write(f: &mut fmt::Formatter, method: &str, settings: &impl Serialize) -> fmt::Result {
    write!(f, "{method}:{}", text_of(to_pairs(settings)))
}

/// Checks a number of which there must be at least one.
pub(crate) fn at_least_one(key: &str, number: usize) -> std::result::Result<(), String> {
    if number == 0 { Err(format!("{key}=0 must be a number above zero")) } else { Ok(()) }
}

/// Checks a number that must be finite and above zero.
pub(crate) fn above_zero(key: &str, number: impl Into<f64> + Display + Copy) -> std::result::Result<(), String> {
    let value = number.into();
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(format!("{key}={number} must be a number above zero")) }
}

/// The settings of a method at their defaults, as they are typed: what [`crate::MethodInfo::defaults`] asks for.
pub(crate) fn defaults<S: Serialize + Default>(_: &str) -> String {
    text_of(to_pairs(&S::default()))
}

/// Reads the settings of a method that has none.
///
/// # Errors
/// If anything is typed.
pub(crate) fn read_none(method: &str, typed: Option<&str>) -> Result<()> {
    match typed_pairs(typed).first() {
        None => Ok(()),
        Some((key, _)) => Err(RouteError::InvalidSetting {
            method: method.to_owned(),
            problem: format!("unknown setting `{key}`"),
            known: listed::<&str>([]),
        }),
    }
}

/// An error about settings that cannot be meant together; `known` are the method's settings with their defaults.
pub(crate) fn refused(method: &str, known: std::result::Result<Pairs, String>, problem: String) -> RouteError {
    let list = |known: Pairs| listed(known.iter().map(|(key, default)| format!("{key}={default}")));
    let known = known.map_or_else(|problem| problem, list);
    RouteError::InvalidSetting { method: method.to_owned(), problem, known }
}
