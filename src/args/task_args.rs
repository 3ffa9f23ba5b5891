//! Options that select tasks, and checks of their splits.

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::ExpertRecord;
use lorakit_task::Task;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Tasks, by `--tasks`.
#[derive(Args, Debug)]
pub struct TaskArgs {
    /// Tasks: TOML files, data files, folders of either, or suite:NAME; NAME= sets the name
    #[arg(long, required = true, num_args = 1.., value_name = "[NAME=]T")]
    pub tasks: Vec<String>,
    #[command(flatten)]
    pub data: DataArgs,
}

/// The folder of the tasks' data.
#[derive(Args, Debug)]
pub struct DataArgs {
    /// Replacement for {data} in task TOML files
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

impl TaskArgs {
    /// Loads the tasks in the given order.
    pub fn load(&self) -> Result<Vec<Task>> {
        Ok(Task::load_all(&self.tasks, self.data.data.as_deref())?)
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
    /// Loads the tasks; `data` replaces {data} in task TOML files.
    pub fn load(&self, data: Option<&Path>) -> Result<Vec<Task>> {
        Task::load_all(&self.fit, data).context("--fit")
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

/// Refuses a task whose test rows the expert may have seen: one with the name of a training task but other rows, or with
/// the same rows split with another seed.
pub fn ensure_unseen(task: &Task, expert: &str, record: &ExpertRecord) -> Result<()> {
    for seen in record.tasks.iter().chain(&record.seen) {
        let (path, hash) = (task.path.display(), task.sha256());
        if seen.name == task.name && seen.sha256 != hash {
            bail!(
                "task `{}` ({path}) differs from the task of that name that expert `{expert}` was trained on ({}): sha256 \
                 {hash}, recorded {}. Use the same file, another name (NAME={path}), or --split all",
                task.name,
                seen.path,
                seen.sha256,
            );
        }
        if seen.sha256 == hash && seen.split_seed != task.split_seed {
            bail!(
                "task `{}` ({path}) is split with split_seed {}, but expert `{expert}` was trained on the same rows split \
                 with {}, so it has seen test rows. Set split_seed = {} in the task's TOML, or use --split all",
                task.name,
                task.split_seed,
                seen.split_seed,
                seen.split_seed,
            );
        }
    }
    Ok(())
}

/// Refuses to fit to the rows of an evaluated task split with another seed.
pub fn ensure_apart(task: &Task, fit: &Task) -> Result<()> {
    ensure!(
        task.sha256() != fit.sha256() || task.split_seed == fit.split_seed,
        "--fit {} ({}) has the rows of the evaluated task `{}`, but split with split_seed {} instead of {}: a router \
         would be fitted to test rows. Use the same split_seed for both, or --split all",
        fit.name,
        fit.path.display(),
        task.name,
        fit.split_seed,
        task.split_seed
    );
    Ok(())
}
