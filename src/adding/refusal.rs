//! Adapters that are not added.

use anyhow::Error;
use std::fmt::{self, Display};
use std::path::PathBuf;

/// An adapter that is not added, and why.
pub struct Refusal {
    /// The name that the expert would have had.
    pub name: String,
    /// Its folder, or the repository that could not be downloaded.
    pub folder: PathBuf,
    /// Why.
    pub error: Error,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {:#}", self.name, self.error)
    }
}
