//! The context of fitting a router over an open library.

use crate::open_library::OpenLibrary;
use crate::reporter::Reporter;
use lorakit_model::Base;
use lorakit_task::{ColumnNames, Task, Tokenizer};
use lorakit_train::BoxError;

/// A base with a library open over it, and the rows that routers may be fitted to.
pub struct FitContext<'a, 'base> {
    /// The base.
    pub base: &'base Base,
    /// The library.
    pub library: &'a OpenLibrary,
    /// Opens the base's tokenizer. It is called only where a router learns something. Its encoding is that of rows which
    /// belong to no expert, or to one whose record does not say how its rows became tokens.
    pub tokenizer: &'a dyn Fn() -> Result<Tokenizer, BoxError>,
    /// The tasks to fit to; empty: what each router takes by default, see [`lorakit_route::TrainingData`].
    pub tasks: &'a [Task],
    /// Loads the tasks of a spec with these columns, to find a task again that an expert's record names.
    pub load_tasks: &'a LoadTasks<'a>,
    /// The seed of everything random.
    pub seed: u64,
    /// Receives progress and warnings.
    pub reporter: &'a dyn Reporter,
}

/// Loads the tasks of `[NAME=]T`.
pub type LoadTasks<'a> = dyn Fn(&str, ColumnNames) -> Result<Vec<Task>, BoxError> + 'a;
