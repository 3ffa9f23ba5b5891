//! What could not be scored.

use crate::context::Context;
use crate::interrupt::Interrupted;
use anyhow::{Error, Result, ensure};
use lorakit_eval::EvalOptions;
use lorakit_fit::pluralize;
use lorakit_task::Task;
use serde::Serialize;

/// What could not be scored. It does not keep the rest from being scored.
#[derive(Default)]
pub struct Failures(Vec<Failure>);

/// One task that could not be scored.
#[derive(Serialize)]
pub struct Failure {
    /// Under this router; none: under any.
    router: Option<String>,
    task: String,
    error: String,
}

impl Failures {
    /// Takes an error of a task down, unless it is the user's wish to stop.
    pub fn add(&mut self, router: Option<&str>, task: &str, error: Error, context: &Context) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let failure = Failure { router: router.map(str::to_owned), task: task.to_owned(), error: format!("{error:#}") };
        context.output.warn(failure.summary());
        self.0.push(failure);
        Ok(())
    }

    /// The tasks that have rows to be scored. Where none has, the first reason is the command's.
    pub fn with_rows(&mut self, tasks: Vec<Task>, options: &EvalOptions, context: &Context) -> Result<Vec<Task>> {
        let (mut fit, mut errors) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.rows(options.split, options.limit).map(|_| ()) {
                Ok(()) => fit.push(task),
                Err(error) => errors.push((task.name, error)),
            }
        }
        if fit.is_empty() && !errors.is_empty() {
            return Err(errors.swap_remove(0).1.into());
        }
        errors.into_iter().try_for_each(|(task, error)| self.add(None, &task, error.into(), context))?;
        Ok(fit)
    }

    /// All of them, in the order in which they came.
    pub fn all(&self) -> &[Failure] {
        &self.0
    }

    /// How the command ends.
    pub fn outcome(&self) -> Result<()> {
        let summary: Vec<String> = self.0.iter().map(Failure::summary).collect();
        let many = pluralize(summary.len(), "score");
        ensure!(summary.is_empty(), "{many} could not be had, and the rest is there: {}", summary.join("; "));
        Ok(())
    }
}

impl Failure {
    fn summary(&self) -> String {
        let router = self.router.as_ref().map_or_else(String::new, |router| format!("--router {router}, "));
        format!("{router}task `{}`: {}", self.task, self.error)
    }
}
