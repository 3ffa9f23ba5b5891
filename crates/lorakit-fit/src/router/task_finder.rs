//! Finds the tasks again that records of experts name.

use crate::error::{ChangedTask, FitError, Result, WithContext as _};
use crate::fit_context::LoadTasks;
use lorakit_adapter::TaskRecord;
use lorakit_task::{ColumnNames, Task};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

const ADVICE: &str = "give the rows to fit to with --fit, or the folder that task files refer to with --data";

/// What tasks are loaded by: their spec, and the columns that stand for the standard ones.
type LoadKey = (String, BTreeMap<String, String>);

/// The tasks that were loaded: one file may hold many.
pub(super) struct TaskFinder<'a> {
    load_tasks: &'a LoadTasks<'a>,
    loaded: BTreeMap<LoadKey, Vec<Task>>,
}

impl<'a> TaskFinder<'a> {
    /// Nothing is loaded yet.
    pub fn new(load_tasks: &'a LoadTasks<'a>) -> Self {
        Self { load_tasks, loaded: BTreeMap::new() }
    }

    /// The task of a record, with the recorded rows and split. `expert` is the one whose record it is.
    ///
    /// # Errors
    /// If it cannot be read, or has changed.
    pub fn find(&mut self, record: &TaskRecord, expert: Option<&str>) -> Result<&Task> {
        let whose = expert.map_or(String::new(), |expert| format!(" of the expert `{expert}`"));
        let (mut place, mut failure, mut other, mut is_read) = (None, None, None, false);
        for spec in specs(record) {
            let tried = (spec, record.columns.clone());
            match self.load(&tried) {
                Ok(tasks) => {
                    is_read = true;
                    if let Some(index) = index_of(record, tasks) {
                        place = Some((tried, index));
                        break;
                    }
                    other = other.or_else(|| tasks.iter().find(|task| task.name == record.name).map(identity));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some((place, index)) = place {
            return Ok(&self.loaded[&place][index]);
        }
        if let (Some(error), false) = (failure, is_read) {
            return Err(error)
                .with_context(|| format!("the task `{}`{whose} was read from {}; {ADVICE}", record.name, record.path));
        }
        Err(FitError::ChangedTask(Box::new(ChangedTask {
            path: record.path.clone(),
            task: record.name.clone(),
            whose,
            sha256: record.sha256.clone(),
            split_seed: record.split_seed,
            found: other.unwrap_or_else(|| "no such task".to_owned()),
            advice: ADVICE,
        })))
    }

    fn load(&mut self, place: &LoadKey) -> Result<&[Task]> {
        match self.loaded.entry(place.clone()) {
            Entry::Occupied(tasks) => Ok(tasks.into_mut()),
            Entry::Vacant(vacant) => {
                let (spec, columns) = place;
                Ok(vacant.insert((self.load_tasks)(spec, ColumnNames::from(columns.clone()))?))
            }
        }
    }
}

/// Where the task may be, best first. Of a file of many tasks its own entry is enough, unless it was given another name.
fn specs(record: &TaskRecord) -> Vec<String> {
    let whole = record.path.clone();
    match whole.ends_with(".toml") {
        true => vec![format!("{whole}:{}", record.name), whole],
        false => vec![whole],
    }
}

/// The recorded rows with the recorded split: of several such tasks the one of the recorded name.
fn index_of(record: &TaskRecord, tasks: &[Task]) -> Option<usize> {
    let same = |task: &Task| task.sha256() == record.sha256 && task.split_seed == record.split_seed;
    let named = tasks.iter().position(|task| same(task) && task.name == record.name);
    named.or_else(|| tasks.iter().position(same))
}

/// What a task is, for comparison with a record.
fn identity(task: &Task) -> String {
    format!("sha256 {}, split_seed {}", task.sha256(), task.split_seed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::task_record::task_record;
    use lorakit_task::TaskLoader;
    use std::fs;

    #[test]
    fn other_tasks_of_a_file_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["a", "b"] {
            fs::write(path(&format!("{name}.jsonl")), format!("{{\"input\": \"{name}\", \"output\": \"c\"}}\n"))
                .unwrap();
        }
        let of = |name: &str| format!("[[task]]\nname = \"{name}\"\nrows = \"{name}.jsonl\"\n");
        fs::write(path("t.toml"), of("a") + &of("b")).unwrap();
        let load = |spec: &str, columns| Ok(TaskLoader { columns, ..TaskLoader::default() }.load(&[spec.to_owned()])?);
        let toml = path("t.toml");
        let record = |spec: String| task_record(&load(&spec, ColumnNames::default()).unwrap()[0]);
        let (a, renamed) = (record(format!("{toml}:a")), record(format!("x={toml}:a")));

        let mut tasks = TaskFinder::new(&load);
        assert_eq!(tasks.find(&renamed, None).unwrap().name, "a");
        fs::remove_file(path("b.jsonl")).unwrap();
        let mut tasks = TaskFinder::new(&load);
        assert_eq!(tasks.find(&a, None).unwrap().name, "a");
        let error = tasks.find(&TaskRecord { split_seed: 1, ..a.clone() }, Some("e")).unwrap_err();
        assert!(matches!(error, FitError::ChangedTask(_)) && error.chain().contains("of the expert `e`"), "{error}");
        fs::remove_file(path("a.jsonl")).unwrap();
        let error = TaskFinder::new(&load).find(&a, Some("e")).unwrap_err().chain();
        assert!(error.contains("a.jsonl") && error.contains("--fit"), "{error}");
    }
}
