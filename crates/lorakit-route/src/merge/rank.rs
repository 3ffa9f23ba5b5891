//! The setting for the rank of a merge.

use crate::merge::module::Module;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The setting `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rank {
    /// The largest rank among the experts, module by module, as in PEFT.
    Largest,
    /// The rank of the exact result.
    Full,
    /// At most this many.
    Of(usize),
}

impl Rank {
    /// The rank in a module whose exact result has rank at most `most`.
    pub(super) fn at(self, module: &Module, most: usize) -> usize {
        match self {
            Self::Largest => module.largest_rank().min(most),
            Self::Full => most,
            Self::Of(rank) => rank.min(most),
        }
    }
}

impl FromStr for Rank {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("largest", _) => Ok(Self::Largest),
            ("full", _) => Ok(Self::Full),
            (_, Ok(rank)) if rank > 0 => Ok(Self::Of(rank)),
            _ => Err("a number from 1, largest or full"),
        }
    }
}

impl TryFrom<String> for Rank {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Rank> for String {
    fn from(rank: Rank) -> Self {
        rank.to_string()
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Largest => f.write_str("largest"),
            Self::Full => f.write_str("full"),
            Self::Of(rank) => rank.fmt(f),
        }
    }
}
