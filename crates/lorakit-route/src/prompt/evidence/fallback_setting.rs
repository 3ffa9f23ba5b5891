//! What serves a prompt that no expert fits.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The fallbacks that `auto` chooses from.
pub const FALLBACKS: [Fallback; 3] = [Fallback::Base, Fallback::Uniform, Fallback::Arrow];

/// What serves a prompt that no expert fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The base alone.
    Base,
    /// All experts at equal weight.
    Uniform,
    /// All experts as Arrow weighs them, token by token.
    Arrow,
}

impl Fallback {
    /// Its index in [`FALLBACKS`].
    pub(super) fn index(self) -> u8 {
        match self {
            Self::Base => 0,
            Self::Uniform => 1,
            Self::Arrow => 2,
        }
    }

    /// The name that is typed.
    fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Uniform => "uniform",
            Self::Arrow => "arrow",
        }
    }
}

/// Which fallback serves prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FallbackSetting {
    /// The one of [`FALLBACKS`] under which the calibration rows' answers are likeliest without their own experts.
    Auto,
    /// This one.
    Fixed(Fallback),
}

impl FromStr for FallbackSetting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match FALLBACKS.into_iter().find(|fallback| fallback.name() == text) {
            Some(fallback) => Ok(Self::Fixed(fallback)),
            None if text == "auto" => Ok(Self::Auto),
            None => Err("auto, base, uniform or arrow"),
        }
    }
}

impl TryFrom<String> for FallbackSetting {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<FallbackSetting> for String {
    fn from(fallback: FallbackSetting) -> Self {
        fallback.to_string()
    }
}

impl fmt::Display for FallbackSetting {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fixed(fallback) => fallback.name(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::method_settings::read;
    use crate::prompt::evidence::Evidence;

    #[test]
    fn fallbacks_are_written_as_they_are_typed() {
        for text in ["auto", "base", "uniform", "arrow"] {
            let typed = read::<Evidence>("evidence", Some(&format!("fallback={text}"))).unwrap();
            assert!(typed.to_string().contains(&format!("fallback={text},")), "{typed}");
        }
        let error = read::<Evidence>("evidence", Some("fallback=other")).unwrap_err().to_string();
        assert!(error.contains("fallback=other cannot be read (auto, base, uniform or arrow)"), "{error}");
    }
}
