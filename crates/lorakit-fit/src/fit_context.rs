//! The context of fitting a router over an open library.

use crate::open_library::OpenLibrary;
use crate::reporter::Reporter;
use lorakit_model::Base;
use lorakit_task::{Task, Tokenizer};
use lorakit_train::BoxError;
use std::path::Path;

/// A base with a library open over it, and the rows that routers may be fitted to.
pub struct FitContext<'a, 'base> {
    /// The base.
    pub base: &'base Base,
    /// The library.
    pub library: &'a OpenLibrary,
    /// Opens the base's tokenizer. It is called only where something is fitted.
    pub tokenizer: &'a dyn Fn() -> Result<Tokenizer, BoxError>,
    /// The tasks to fit to; empty: what each router takes by default, see [`lorakit_route::TrainingData`].
    pub tasks: &'a [Task],
    /// The folder that task files refer to, for tasks that are found again by an expert's record.
    pub data: Option<&'a Path>,
    /// The seed of everything random.
    pub seed: u64,
    /// Receives progress and warnings.
    pub reporter: &'a dyn Reporter,
}
