//! Options that select tasks.

use crate::args::usage::usage_error;
use crate::command_context::CommandContext;
use crate::hub::dataset_files;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_adapter::TaskRecord;
use lorakit_fit::{OpenLibrary, chat_template_of};
use lorakit_task::{ColumnNames, SplitFiles, Task, TaskLoader, Tokenizer};
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
        let mut downloads: BTreeMap<String, SplitFiles> = BTreeMap::new();
        for task in tasks {
            let source = Task::source_of(task)?;
            let Some(repository) = source.strip_prefix("hub:").filter(|_| !downloads.contains_key(source)) else {
                continue;
            };
            let dataset = repository.strip_prefix("datasets/").ok_or_else(|| {
                usage_error(format!("`{source}`: a task of the Hub is hub:datasets/ORG/NAME[@REV][:CONFIG]"))
            })?;
            downloads.insert(source.to_owned(), dataset_files::fetch(dataset, context)?);
        }
        let columns = self.columns.clone().unwrap_or_default();
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

/// Warns of experts that were trained on rows under another chat template, or none, than the rows that are scored. Only
/// the experts count that `is_used` says are used.
pub fn warn_of_templates(
    tasks: &[Task],
    opened: &OpenLibrary,
    is_used: impl Fn(&str) -> bool,
    tokenizer: &Tokenizer,
    context: &CommandContext,
) {
    let experts = opened.experts.names().iter().zip(&opened.records).filter(|(name, _)| is_used(name));
    let trained: Vec<(&str, &[TaskRecord])> =
        experts.filter_map(|(name, record)| Some((name.as_str(), record.as_ref()?.tasks.as_slice()))).collect();
    for task in tasks {
        let scored = chat_template_of(task, tokenizer);
        let other = |(_, tasks): &&(&str, &[TaskRecord])| {
            !tasks.is_empty() && tasks.iter().all(|task| task.chat_template != scored)
        };
        let Some((first, recorded)) = trained.iter().find(other) else { continue };
        let form = |template: &Option<String>| match template {
            Some(hash) => format!("the chat template {}", &hash[..hash.len().min(8)]),
            None => "no chat template".to_owned(),
        };
        context.output.warn(format!(
            "task `{}` is scored under {}, but {} of {} experts, such as `{first}`, were trained under {}",
            task.name,
            form(&scored),
            trained.iter().filter(other).count(),
            trained.len(),
            form(&recorded[0].chat_template)
        ));
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
    pub fn load(&self, data: &DataArgs, context: &CommandContext) -> Result<Vec<Task>> {
        data.load(&self.fit, context).context("--fit")
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
