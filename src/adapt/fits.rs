//! What came of fitting, task by task: one that fails does not end the others.

use crate::output::counted;
use anyhow::{Error, Result, bail};
use serde_json::{Value, json};

/// What came of fitting.
#[derive(Default)]
pub struct Fits {
    /// The tasks whose adapters are there, with what is known of each.
    pub finished: Vec<(String, Value)>,
    failed: Vec<(String, Error)>,
}

impl Fits {
    /// Keeps what came of one task.
    pub fn keep(&mut self, task: &str, fit: Result<Value>) {
        match fit {
            Ok(fit) => self.finished.push((task.to_owned(), fit)),
            Err(error) => self.failed.push((task.to_owned(), error)),
        }
    }

    /// The finished ones as JSON.
    pub fn document(&self) -> Value {
        self.finished.iter().map(|(task, fit)| json!({ "task": task, "fit": fit })).collect()
    }

    /// How the command ends.
    pub fn outcome(&self) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let each: Vec<String> = self.failed.iter().map(|(task, error)| format!("`{task}`: {error:#}")).collect();
        bail!("{} failed, and what else was finished is there: {}", counted(each.len(), "task"), each.join("; "))
    }
}
