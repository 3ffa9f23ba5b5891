//! The outcome of fitting each task: one that fails does not stop the others.

use crate::error::{FitError, Result};
use serde_json::{Value, json};

/// The outcome of every task.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// The tasks whose adapters are in the library, with the record of each fit.
    pub finished: Vec<(String, Value)>,
    /// The tasks whose fit failed, with the reason.
    pub failed: Vec<(String, FitError)>,
}

impl Outcomes {
    /// Adds the outcome of one task.
    pub fn add(&mut self, task: &str, fit: Result<Value>) {
        match fit {
            Ok(fit) => self.finished.push((task.to_owned(), fit)),
            Err(error) => self.failed.push((task.to_owned(), error)),
        }
    }

    /// The finished tasks as JSON.
    pub fn document(&self) -> Value {
        self.finished.iter().map(|(task, fit)| json!({ "task": task, "fit": fit })).collect()
    }
}
