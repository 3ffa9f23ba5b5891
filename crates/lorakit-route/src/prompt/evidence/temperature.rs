//! How sharply the router `evidence` chooses among tasks.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The temperatures that `auto` chooses from.
pub const TEMPERATURES: [f32; 5] = [0.025, 0.05, 0.1, 0.2, 0.4];

/// The divisor of the logarithms of squared distances before the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Temperature {
    /// The one of [`TEMPERATURES`] under which the calibration rows' answers are likeliest.
    Auto,
    /// This one.
    Fixed(f32),
}

impl FromStr for Temperature {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(value) if value > 0.0 && f32::is_finite(value) => Ok(Self::Fixed(value)),
            Err(_) if text == "auto" => Ok(Self::Auto),
            _ => Err("a number above zero, or auto"),
        }
    }
}

impl TryFrom<String> for Temperature {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Temperature> for String {
    fn from(temperature: Temperature) -> Self {
        temperature.to_string()
    }
}

impl fmt::Display for Temperature {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(value) => value.fmt(f),
        }
    }
}
