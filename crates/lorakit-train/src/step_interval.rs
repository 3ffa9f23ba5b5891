//! How often something happens in training: `eval_steps` and `save_steps`.

use crate::setting_values::is_whole;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::{self, Formatter};

/// The steps between two validations or checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StepInterval {
    /// A number of steps; 0: never.
    Steps(usize),
    /// A fraction of all steps, between 0 and 1, as in transformers.
    Ratio(f64),
}

impl StepInterval {
    /// It never happens.
    pub const NEVER: Self = Self::Steps(0);

    /// The number of steps, of `total`; None: never. Fractions of a step are rounded up.
    pub fn steps(self, total: usize) -> Option<usize> {
        let steps = match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (ratio * total as f64).ceil() as usize,
        };
        (steps > 0).then_some(steps)
    }
}

impl<'de> Deserialize<'de> for StepInterval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(StepIntervalVisitor)
    }
}

struct StepIntervalVisitor;

impl Visitor<'_> for StepIntervalVisitor {
    type Value = StepInterval;

    fn expecting(&self, formatter: &mut Formatter) -> fmt::Result {
        formatter.write_str("a whole number that is not negative, or a fraction of all steps, below 1")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<StepInterval, E> {
        let steps = usize::try_from(value).map(StepInterval::Steps);
        steps.map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<StepInterval, E> {
        let steps = usize::try_from(value).map(StepInterval::Steps);
        steps.map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<StepInterval, E> {
        match value {
            ratio if ratio > 0.0 && ratio < 1.0 => Ok(StepInterval::Ratio(ratio)),
            whole if is_whole(whole) => Ok(StepInterval::Steps(whole as usize)),
            other => Err(E::invalid_value(Unexpected::Float(other), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<StepInterval, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_fraction_is_one_of_all_steps_rounded_up() {
        for (text, steps) in [("0.5", Some(3)), ("0.001", Some(1)), ("3", Some(3)), ("3.0", Some(3)), ("0", None)] {
            assert_eq!(read(text).unwrap().steps(5), steps, "{text}");
        }
        for wrong in ["1.5", "-1", "-0.5", "\"x\"", "1e300"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("or a fraction of all steps"), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_interval_is_written_as_the_number_that_it_is() {
        let written = |text: &str| serde_json::to_string(&read(text).unwrap()).unwrap();
        assert_eq!((written("100"), written("7.0"), written("0.25")), ("100".into(), "7".into(), "0.25".into()));
    }
}
