//! Options that select tasks.

use crate::args::usage::usage_error;
use crate::command_context::CommandContext;
use crate::hub::dataset_files;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_task::{ColumnNames, SplitFiles, Task, TaskLoader};
use lorakit_train::BoxError;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tasks, by `--tasks`.
#[derive(Args, Debug)]
pub struct TaskArgs {
    /// Tasks: TOML files, data files (JSON, JSONL, CSV, TSV, Parquet), folders of them or saved by
    /// `datasets`, hub:datasets/ORG/NAME[@REV][:CONFIG], or suite:NAME; NAME= sets the name
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
    #[arg(long, value_name = "STANDARD=COLUMN,...")]
    columns: Option<ColumnNames>,
}

impl DataArgs {
    /// Loads tasks in the given order, and downloads those of the Hub.
    pub fn load(&self, tasks: &[String], context: &CommandContext) -> Result<Vec<Task>> {
        self.load_with(tasks, self.columns.clone().unwrap_or_default(), context)
    }

    /// Loads the tasks of `--fit`, and says what of their rows is not used.
    pub fn load_fit(&self, tasks: &[String], context: &CommandContext) -> Result<Vec<Task>> {
        let tasks = self.load(tasks, context).context("--fit")?;
        warn_of_unused(&tasks, context);
        Ok(tasks)
    }

    /// Loads tasks again that experts' records name, each with the columns of its record.
    pub fn load_recorded(&self, context: &CommandContext) -> impl Fn(&str, ColumnNames) -> Result<Vec<Task>, BoxError> {
        move |spec, columns| Ok(self.load_with(&[spec.to_owned()], columns, context)?)
    }

    fn load_with(&self, tasks: &[String], columns: ColumnNames, context: &CommandContext) -> Result<Vec<Task>> {
        let mut downloads: BTreeMap<String, SplitFiles> = BTreeMap::new();
        for task in tasks {
            let source = Task::source_of(task).map_err(usage_error)?;
            let Some(repository) = source.strip_prefix("hub:").filter(|_| !downloads.contains_key(source)) else {
                continue;
            };
            let dataset = repository.strip_prefix("datasets/").ok_or_else(|| {
                usage_error(format!("`{source}`: a task of the Hub is hub:datasets/ORG/NAME[@REV][:CONFIG]"))
            })?;
            downloads.insert(source.to_owned(), dataset_files::fetch(dataset, context)?);
        }
        Ok(TaskLoader { data: self.data.clone(), columns, downloads }.load(tasks)?)
    }
}

impl TaskArgs {
    /// Loads the tasks in the given order.
    pub fn load(&self, context: &CommandContext) -> Result<Vec<Task>> {
        self.data.load(&self.tasks, context)
    }
}

/// Says what of the tasks' rows is not used.
pub fn warn_of_unused(tasks: &[Task], context: &CommandContext) {
    for task in tasks {
        task.warnings.iter().for_each(|warning| context.output.warn(format!("task `{}`: {warning}", task.name)));
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
