//! How many rows an evaluation scores, and why not all.

use lorakit_eval::EvalOptions;
use lorakit_fit::pluralize;
use lorakit_task::{Split, Task};
use std::fmt;

/// The rows of some tasks, and those that are scored.
pub struct RowCounts {
    /// What the rows are of: a task's name, or the number of tasks.
    tasks: String,
    /// The rows of all splits.
    given: usize,
    /// The rows of the split.
    in_split: usize,
    scored: usize,
    split: Split,
    limit: Option<usize>,
}

impl RowCounts {
    /// The rows of `tasks` under these options.
    pub fn new(tasks: &[Task], options: &EvalOptions) -> Self {
        let named = match tasks {
            [task] => format!("task `{}`", task.name),
            _ => pluralize(tasks.len(), "task"),
        };
        let scored = |task: &Task| task.count(options.split).min(options.limit.unwrap_or(usize::MAX));
        Self {
            tasks: named,
            given: tasks.iter().map(|task| task.count(Split::All)).sum(),
            in_split: tasks.iter().map(|task| task.count(options.split)).sum(),
            scored: tasks.iter().map(scored).sum(),
            split: options.split,
            limit: options.limit,
        }
    }
}

impl fmt::Display for RowCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tasks, given, in_split, scored, split, .. } = self;
        match (*scored, *given) {
            (1, 1) => return write!(f, "{tasks}: the only row is scored"),
            (scored, given) if scored == given => {
                return write!(f, "{tasks}: all {} are scored", pluralize(given, "row"));
            }
            _ => {}
        }
        let are = if *scored == 1 { "is" } else { "are" };
        write!(f, "{tasks}: {scored} of {} {are} scored: ", pluralize(*given, "row"))?;
        if in_split < given {
            write!(f, "the {split} split ({in_split}; --split all scores all)")?;
        }
        match self.limit {
            Some(limit) if scored < in_split => {
                let then = if in_split < given { ", of which " } else { "" };
                write!(f, "{then}the first {limit} per task (--limit)")
            }
            _ => Ok(()),
        }
    }
}
