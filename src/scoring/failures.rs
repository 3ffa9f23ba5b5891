//! Evaluations that failed, while all others go on.

use crate::command_context::CommandContext;
use crate::interrupt::Interrupted;
use anyhow::{Error, Result, ensure};
use lorakit_eval::EvalOptions;
use lorakit_fit::pluralize;
use lorakit_task::{Split, Task};
use serde::Serialize;

/// Routers and tasks that could not be evaluated. The others still are.
#[derive(Default)]
pub struct Failures {
    all: Vec<Failure>,
    /// Whether a failure is reported in the command's error alone, since no other evaluation continues.
    reports_once: bool,
}

/// A router, a task, or a router on a task that could not be evaluated.
#[derive(Serialize)]
pub struct Failure {
    /// With this router; none: with any.
    router: Option<String>,
    /// On this task; none: on any.
    task: Option<String>,
    error: String,
}

impl Failures {
    /// From now on reports a failure in the command's error alone, since no other evaluation continues.
    pub fn report_once(&mut self) {
        self.reports_once = true;
    }

    /// Records an error, and warns of it where other evaluations go on; an interruption is returned.
    pub fn add(
        &mut self,
        router: Option<&str>,
        task: Option<&str>,
        error: Error,
        context: &CommandContext,
    ) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let (router, task) = (router.map(str::to_owned), task.map(str::to_owned));
        let failure = Failure { router, task, error: format!("{error:#}") };
        if !self.reports_once {
            context.output.warn(failure.summary());
        }
        self.all.push(failure);
        Ok(())
    }

    /// The tasks that have rows to evaluate. If none has, the first error is returned.
    pub fn with_rows(
        &mut self,
        tasks: Vec<Task>,
        options: &EvalOptions,
        context: &CommandContext,
    ) -> Result<Vec<Task>> {
        let kept = self.keep(tasks, |task| task.rows(options.split, options.limit).map(|_| ()), context)?;
        Ok(kept.into_iter().map(|(task, ())| task).collect())
    }

    /// The tasks that have rows for so many examples, each with itself as it is prompted. If none has, the first error is
    /// returned.
    pub fn with_examples(
        &mut self,
        tasks: Vec<Task>,
        shots: usize,
        split: Split,
        context: &CommandContext,
    ) -> Result<(Vec<Task>, Vec<Task>)> {
        Ok(self.keep(tasks, |task| task.with_few_shot(shots, split), context)?.into_iter().unzip())
    }

    /// The tasks of which `of` gives something, with that.
    fn keep<T>(
        &mut self,
        tasks: Vec<Task>,
        of: impl Fn(&Task) -> lorakit_task::Result<T>,
        context: &CommandContext,
    ) -> Result<Vec<(Task, T)>> {
        let (mut scorable, mut errors) = (Vec::new(), Vec::new());
        for task in tasks {
            match of(&task) {
                Ok(found) => scorable.push((task, found)),
                Err(error) => errors.push((task.name, error)),
            }
        }
        if scorable.is_empty() && !errors.is_empty() {
            return Err(errors.swap_remove(0).1.into());
        }
        errors.into_iter().try_for_each(|(task, error)| self.add(None, Some(&task), error.into(), context))?;
        Ok(scorable)
    }

    /// All failures in order.
    pub fn all(&self) -> &[Failure] {
        &self.all
    }

    /// The outcome of the command; `scored`: whether any evaluation is complete.
    pub fn outcome(&self, scored: bool) -> Result<()> {
        // The warnings have given the reasons.
        let say = if self.reports_once { Failure::summary } else { Failure::place };
        let failed: Vec<String> = self.all.iter().map(say).collect();
        let others = if scored { ", all others are complete" } else { "" };
        let many = pluralize(failed.len(), "evaluation");
        ensure!(failed.is_empty(), "{many} failed{others}: {}", failed.join("; "));
        Ok(())
    }
}

impl Failure {
    fn summary(&self) -> String {
        format!("{}: {}", self.place(), self.error)
    }

    fn place(&self) -> String {
        let router = self.router.as_ref().map(|router| format!("--router {router}"));
        let task = self.task.as_ref().map(|task| format!("task `{task}`"));
        let place: Vec<String> = router.into_iter().chain(task).collect();
        place.join(", ")
    }
}
