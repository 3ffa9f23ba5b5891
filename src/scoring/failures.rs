//! Tasks that could not be evaluated.

use crate::command_context::CommandContext;
use crate::interrupt::Interrupted;
use anyhow::{Error, Result, ensure};
use lorakit_eval::EvalOptions;
use lorakit_fit::pluralize;
use lorakit_task::Task;
use serde::Serialize;

/// Tasks that could not be evaluated. The others still are.
#[derive(Default)]
pub struct Failures(Vec<Failure>);

/// A task that could not be evaluated.
#[derive(Serialize)]
pub struct Failure {
    /// With this router; none: with any.
    router: Option<String>,
    task: String,
    error: String,
}

impl Failures {
    /// Records and prints the error of a task; an interruption is returned.
    pub fn add(&mut self, router: Option<&str>, task: &str, error: Error, context: &CommandContext) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let failure = Failure { router: router.map(str::to_owned), task: task.to_owned(), error: format!("{error:#}") };
        context.output.warn(failure.summary());
        self.0.push(failure);
        Ok(())
    }

    /// The tasks that have rows to evaluate. If none has, the first error is returned.
    pub fn with_rows(
        &mut self,
        tasks: Vec<Task>,
        options: &EvalOptions,
        context: &CommandContext,
    ) -> Result<Vec<Task>> {
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

    /// All failures in order.
    pub fn all(&self) -> &[Failure] {
        &self.0
    }

    /// The outcome of the command.
    pub fn outcome(&self) -> Result<()> {
        let failed: Vec<String> = self.0.iter().map(Failure::summary).collect();
        let many = pluralize(failed.len(), "evaluation");
        ensure!(failed.is_empty(), "{many} failed, all others are complete: {}", failed.join("; "));
        Ok(())
    }
}

impl Failure {
    fn summary(&self) -> String {
        let router = self.router.as_ref().map_or_else(String::new, |router| format!("--router {router}, "));
        format!("{router}task `{}`: {}", self.task, self.error)
    }
}
