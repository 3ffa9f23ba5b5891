//! The options that name tasks.

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::ExpertRecord;
use lorakit_task::Task;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Tasks, by `--tasks`.
#[derive(Args, Debug)]
pub struct TaskArgs {
    /// Task TOMLs, data files in a plain form, folders of them, or suite:NAME; NAME= names one
    #[arg(long, required = true, num_args = 1.., value_name = "[NAME=]T")]
    pub tasks: Vec<String>,
    #[command(flatten)]
    pub data: DataArgs,
}

/// The folder that task files refer to.
#[derive(Args, Debug)]
pub struct DataArgs {
    /// What {data} stands for in task TOMLs
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

impl TaskArgs {
    /// Loads the tasks, in the order given.
    pub fn load(&self) -> Result<Vec<Task>> {
        Ok(Task::load_all(&self.tasks, self.data.data.as_deref())?)
    }
}

/// The options that say what routers are fitted to.
#[derive(Args, Debug)]
pub struct FitArgs {
    /// Tasks whose train rows routers learn from [default: each expert's own tasks, or the task that is evaluated]
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    pub fit: Vec<String>,
}

impl FitArgs {
    /// Loads the tasks; `data` is what {data} stands for in task TOMLs.
    pub fn load(&self, data: Option<&Path>) -> Result<Vec<Task>> {
        Task::load_all(&self.fit, data).context("--fit")
    }
}

/// What a record keeps of a task, as JSON.
pub fn document(task: &Task) -> Value {
    json!({ "name": task.name, "path": task.path, "sha256": task.sha256(), "split_seed": task.split_seed })
}

/// Refuses a task whose rows are not those that an expert was trained on, or are split otherwise: its test rows may be
/// rows that the expert has seen.
pub fn ensure_unseen(task: &Task, expert: &str, record: &ExpertRecord) -> Result<()> {
    for seen in record.tasks.iter().chain(&record.seen) {
        let (path, hash) = (task.path.display(), task.sha256());
        if seen.name == task.name && seen.sha256 != hash {
            bail!(
                "task `{}` ({path}) is not what the expert `{expert}` was trained on under that name ({}): sha256 \
                 {hash}, recorded {}. \
                 Give the same file, another name (NAME={path}), or --split all",
                task.name,
                seen.path,
                seen.sha256,
            );
        }
        if seen.sha256 == hash && seen.split_seed != task.split_seed {
            bail!(
                "task `{}` ({path}) is split with split_seed {}, and the expert `{expert}` was trained on the same \
                 rows split with {}: \
                 rows to be scored were trained on. Set split_seed = {} in the task's TOML, or take --split all",
                task.name,
                task.split_seed,
                seen.split_seed,
                seen.split_seed,
            );
        }
    }
    Ok(())
}

/// Refuses rows to learn from that are rows of a task which is scored, split otherwise.
pub fn ensure_apart(task: &Task, fit: &Task) -> Result<()> {
    ensure!(
        task.sha256() != fit.sha256() || task.split_seed == fit.split_seed,
        "--fit {} ({}) has the rows of the task `{}`, split with split_seed {}, and it is scored on a split with {}: rows \
         to be scored would be learned from. Give both the same split_seed, or take --split all",
        fit.name,
        fit.path.display(),
        task.name,
        fit.split_seed,
        task.split_seed
    );
    Ok(())
}
