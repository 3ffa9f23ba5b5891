//! Refuses to score rows that an expert was trained on, or that a router is fitted to.

use crate::command_context::CommandContext;
use anyhow::{Result, bail, ensure};
use lorakit_adapter::{ExpertRecord, TaskRecord};
use lorakit_fit::OpenLibrary;
use lorakit_format::hash_sketch::HashSketch;
use lorakit_task::{Split, Task};

/// From this share on, rows in common are no coincidence.
const MAX_COMMON_SHARE: f64 = 0.1;

/// What to do about a task whose own files share rows.
const OVERLAPPING: &str = "Give `train` and `test` of its TOML files without common rows";

/// Refuses tasks whose rows of a split were seen by an expert, which is given with its name. Warns where a few were.
pub fn ensure_unseen(
    tasks: &[Task],
    split: Split,
    experts: &[(&str, &ExpertRecord)],
    context: &CommandContext,
) -> Result<()> {
    for task in tasks.iter().filter(|_| split != Split::All) {
        let rows = ScoredRows::new(task, split);
        let few = experts.iter().map(|(expert, record)| rows.ensure_unseen(expert, record));
        if let Some(few) = few.collect::<Result<Vec<_>>>()?.into_iter().flatten().next() {
            context.output.warn(few);
        }
    }
    Ok(())
}

/// The experts of a library that have a record.
pub fn experts(opened: &OpenLibrary) -> Vec<(&str, &ExpertRecord)> {
    let named = opened.experts.names().iter().zip(&opened.records);
    named.filter_map(|(name, record)| Some((name.as_str(), record.as_ref()?))).collect()
}

/// A task with the hashes of the rows that are scored.
pub struct ScoredRows<'a> {
    task: &'a Task,
    split: Split,
    hashes: Vec<u64>,
}

/// Scored rows that were seen. Data sets may repeat some of their training rows in their test rows.
struct SeenRows {
    shared: usize,
    compared: usize,
}

impl<'a> ScoredRows<'a> {
    /// The rows of a split. Of the training rows, and of all, it is known that they were seen.
    pub fn new(task: &'a Task, split: Split) -> Self {
        let hashes = match split {
            Split::Validation | Split::Test => task.row_hashes(split).collect(),
            Split::Train | Split::All => Vec::new(),
        };
        Self { task, split, hashes }
    }

    /// Refuses a task whose rows the expert has seen: one with the name of a training task but other rows, one with the same
    /// rows split with another seed, or one that shares rows with the training rows of any task, also with its own. A few
    /// shared rows are returned, for a warning.
    fn ensure_unseen(&self, expert: &str, record: &ExpertRecord) -> Result<Option<String>> {
        let mut few = None;
        for seen in record.tasks.iter().chain(&record.seen) {
            self.ensure_split(expert, seen)?;
            let Some(found) = self.seen_rows(&seen.train_rows) else { continue };
            let (task, path) = (&self.task.name, self.task.path.display());
            let (split, SeenRows { shared, compared }) = (self.split, found);
            let rows = format!(
                "task `{task}` ({path}): {shared} of {compared} {split} rows are training rows of expert `{expert}` (task \
                 `{}`, {})",
                seen.name, seen.path
            );
            let hint = if seen.sha256 == self.task.sha256() {
                format!("{OVERLAPPING}, or --split train, whose rows are known to be seen")
            } else {
                format!("Use the file that it was trained on with its split_seed {}, or --split all", seen.split_seed)
            };
            ensure!(
                (shared as f64) < MAX_COMMON_SHARE * compared as f64,
                "{rows}, so their scores would not be those of unseen rows. {hint}"
            );
            few = few.or(Some(rows));
        }
        Ok(few)
    }

    /// Compares a training task by its name, its hash and its split.
    fn ensure_split(&self, expert: &str, seen: &TaskRecord) -> Result<()> {
        let task = self.task;
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
                 with {}, so {}. Set split_seed = {} in the task's TOML, or use --split all",
                task.name,
                task.split_seed,
                seen.split_seed,
                match self.split {
                    Split::Train => "these train rows are not those that it was trained on".to_owned(),
                    split => format!("it has seen {split} rows"),
                },
                seen.split_seed,
            );
        }
        Ok(())
    }

    /// The rows that are among the recorded training rows, if any. A task that is split by hash shares none with itself, one
    /// with files for train and test what these share.
    fn seen_rows(&self, train_rows: &str) -> Option<SeenRows> {
        let (shared, compared) = HashSketch::of_text(train_rows)?.shared(self.hashes.iter().copied());
        (shared > 0).then_some(SeenRows { shared, compared })
    }

    /// Refuses to fit to these rows: those of the evaluated task split with another seed, or of another task with the same
    /// rows.
    pub fn ensure_apart(&self, fit: &Task) -> Result<()> {
        let task = self.task;
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
        let hint =
            if task.sha256() == fit.sha256() { OVERLAPPING } else { "Use one file with one split_seed for both" };
        let fitted = [Split::Train, Split::Validation].into_iter().flat_map(|split| fit.row_hashes(split));
        let (shared, compared) = HashSketch::new(fitted).shared(self.hashes.iter().copied());
        ensure!(
            shared == 0 || (shared as f64) < MAX_COMMON_SHARE * compared as f64,
            "--fit {} ({}): {shared} of {compared} {} rows of the evaluated task `{}` are among its training rows or \
             validation rows. {hint}, or --split all",
            fit.name,
            fit.path.display(),
            self.split,
            task.name
        );
        Ok(())
    }
}
