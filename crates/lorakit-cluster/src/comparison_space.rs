//! The spaces in which adapters are compared.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is compared of two adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparisonSpace {
    /// The values of A and B, flattened, without their scale: the published form (arXiv:2405.11157, Algorithm 1). An A that
    /// several modules share counts once. After little training the common initial A dominates.
    Parameters,
    /// A minus the common initial A, and B, flattened: what training changed.
    Change,
    /// What the adapters add to the base's weights: `s B A`, compared by `<s1 B1 A1, s2 B2 A2>` summed over the modules.
    /// Ranks, scales and sets of modules may differ; a module that an expert lacks counts as zero.
    #[default]
    Delta,
}

impl ComparisonSpace {
    /// All spaces, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Delta, Self::Change, Self::Parameters];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Change => "change",
            Self::Delta => "delta",
        }
    }
}

impl fmt::Display for ComparisonSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
