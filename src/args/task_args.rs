//! Options that select tasks.

use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_task::{ColumnNames, Task};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Tasks, by `--tasks`.
#[derive(Args, Debug)]
pub struct TaskArgs {
    /// Tasks: TOML files, data files (JSON, JSONL, CSV, TSV, Parquet), folders of either or of `datasets`, or suite:NAME;
    /// NAME= sets the name
    #[arg(long, required = true, num_args = 1.., value_name = "[NAME=]T")]
    pub tasks: Vec<String>,
    #[command(flatten)]
    pub data: DataArgs,
}

/// What task files leave open.
#[derive(Args, Debug)]
pub struct DataArgs {
    /// Replacement for {data} in task TOML files
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Columns of the data files that stand for the standard ones, such as input=question,output=answer
    #[arg(long, value_name = "COLUMN=NAME,...")]
    columns: Option<ColumnNames>,
}

impl DataArgs {
    /// Loads tasks in the given order.
    pub fn load(&self, tasks: &[String]) -> Result<Vec<Task>> {
        let columns = self.columns.clone().unwrap_or_default();
        Ok(Task::load_renamed(tasks, self.data.as_deref(), &columns)?)
    }
}

impl TaskArgs {
    /// Loads the tasks in the given order.
    pub fn load(&self) -> Result<Vec<Task>> {
        self.data.load(&self.tasks)
    }
}

/// The tasks that routers are fitted to.
#[derive(Args, Debug)]
pub struct FitArgs {
    /// Tasks to fit routers to [default: each expert's own tasks, or the evaluated task]
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    pub fit: Vec<String>,
}

impl FitArgs {
    /// Loads the tasks.
    pub fn load(&self, data: &DataArgs) -> Result<Vec<Task>> {
        data.load(&self.fit).context("--fit")
    }
}

/// The identity of a task in JSON documents.
#[derive(Serialize)]
pub struct TaskDocument<'a> {
    name: &'a str,
    path: &'a Path,
    sha256: &'a str,
    split_seed: u64,
}

impl<'a> TaskDocument<'a> {
    /// The identity of `task`.
    pub fn of(task: &'a Task) -> Self {
        Self { name: &task.name, path: &task.path, sha256: task.sha256(), split_seed: task.split_seed }
    }
}
