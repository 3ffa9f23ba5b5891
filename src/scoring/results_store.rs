//! results.json: the scores of a run, merged with those of earlier runs and of other parts of this one.

use crate::args::router_arg::RouterArg;
use crate::args::usage;
use crate::command_context::CommandContext;
use crate::output::console::make_folder;
use crate::scoring::samples_replacement::replace_with_samples;
use crate::scoring::setting_differences::CurrentRun;
use anyhow::{Context as _, Result, ensure};
use lorakit_eval::{Results, TaskScores, samples_file, samples_jsonl};
use lorakit_format::LockAttempt;
use lorakit_format::atomic::write_file;
use lorakit_task::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where results are written.
pub struct ResultsFolder<'a> {
    /// The folder of results.json; none: results are not written.
    pub folder: Option<&'a Path>,
    /// Whether the scores of each row are written too.
    pub log_samples: bool,
}

/// The scores so far, written after every task: an interruption loses at most one.
pub struct ResultsStore {
    /// The results of this run.
    pub now: Results,
    /// The folder of results.json.
    folder: Option<PathBuf>,
    log_samples: bool,
}

/// The configuration of an earlier run whose results are kept: an entry of `earlier` in the configuration.
#[derive(Deserialize, Serialize)]
struct Earlier {
    config: Value,
    versions: Value,
    /// The tasks by their routers.
    results: BTreeMap<String, BTreeSet<String>>,
}

impl Earlier {
    /// The configurations of all results of a file that are not those of the run `now`; errors name its `path`.
    fn of(file: &mut Results, path: &Path, now: &Results) -> Result<Vec<Self>> {
        let earlier = file.config.as_object_mut().and_then(|config| config.remove(EARLIER));
        let mut all: Vec<Self> = earlier.map_or(Ok(Vec::new()), serde_json::from_value).with_context(|| {
            format!(
                "{}: `config.{EARLIER}` cannot be read as the configurations of earlier results; move the file, or use \
                 another --out",
                path.display()
            )
        })?;
        // Another part of the same run, or one that was interrupted.
        if (&file.config, &file.versions) == (&now.config, &now.versions) {
            return Ok(all);
        }
        let known = |router: &str, task: &String| all.iter().any(|results| results.has(router, task));
        let mut results = BTreeMap::new();
        for (router, tasks) in file.routers() {
            let own: BTreeSet<String> = tasks.keys().filter(|task| !known(router, task)).cloned().collect();
            results.insert(router.to_owned(), own);
        }
        all.push(Self { config: file.config.take(), versions: file.versions.take(), results });
        Ok(all)
    }

    fn has(&self, router: &str, task: &String) -> bool {
        self.results.get(router).is_some_and(|tasks| tasks.contains(task))
    }

    /// Removes a result that was replaced.
    fn forget(&mut self, router: &str, task: &str) {
        if let Some(tasks) = self.results.get_mut(router) {
            tasks.remove(task);
        }
        self.results.retain(|_, tasks| !tasks.is_empty());
    }
}

/// The key of earlier configurations within the configuration.
const EARLIER: &str = "earlier";

impl ResultsStore {
    /// Opens the store for the results of `routers` on `tasks` under `config`.
    pub fn open(
        place: ResultsFolder,
        routers: &[RouterArg],
        tasks: &[Task],
        config: Value,
        context: &CommandContext,
    ) -> Result<Self> {
        let mut now = Results::default();
        (now.config, now.versions) = (config, json!({ "lorakit": env!("CARGO_PKG_VERSION") }));
        let Some(folder) = place.folder else {
            return Ok(Self { now, folder: None, log_samples: false });
        };
        let samples = if place.log_samples { SampleFiles::new(routers, tasks)? } else { SampleFiles::default() };
        make_folder(folder)?;
        let path = folder.join("results.json");
        let mut file = read_existing(&path)?;
        samples.ensure_apart_from(&file, folder)?;
        let run = CurrentRun { config: &now.config, routers, tasks };
        let earlier = Earlier::of(&mut file, &path, &now)?;
        let keys: BTreeSet<&str> =
            earlier.iter().flat_map(|earlier| run.differing_settings(&earlier.config, &earlier.results)).collect();
        if !keys.is_empty() {
            context.output.warn(format!(
                "{}: existing results of other routers or tasks are kept; they were computed with other settings ({}), which \
                 are kept too",
                folder.display(),
                keys.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(Self { now, folder: Some(folder.to_owned()), log_samples: place.log_samples })
    }

    /// The folder of results.json, if results are written.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Adds the scores of a router on a task to results.json, which other processes may be adding to.
    pub fn keep(&mut self, router: &str, task: &str, scores: &TaskScores) -> Result<()> {
        self.now.insert(router, task, scores);
        let Some(folder) = &self.folder else { return Ok(()) };
        let lock = LockAttempt::new(folder, folder).acquire()?;
        // Files are replaced as a whole: a process that was killed left nothing half done.
        lock.recovered();
        let path = folder.join("results.json");
        let mut results = read_existing(&path)?;
        let mut earlier = Earlier::of(&mut results, &path, &self.now)?;
        earlier.iter_mut().for_each(|earlier| earlier.forget(router, task));
        earlier.retain(|earlier| !earlier.results.is_empty());
        results.insert(router, task, scores);
        (results.config, results.versions) = (self.now.config.clone(), self.now.versions.clone());
        if !earlier.is_empty() {
            results.config[EARLIER] = serde_json::to_value(&earlier)?;
        }
        if !self.log_samples && shares_samples(&results, router, task) {
            // A file of that name may be another result's.
            lock.ensure_held()?;
            return Ok(write_file(&path, results.to_json()?.as_bytes())?);
        }
        lock.ensure_held()?;
        let samples = self.log_samples.then(|| samples_jsonl(&scores.samples)).transpose()?;
        let write_results = || Ok(write_file(&path, results.to_json()?.as_bytes())?);
        replace_with_samples(&folder.join(samples_file(router, task)), samples.as_deref(), write_results)
    }
}

/// The results of earlier runs; empty if there is no file.
fn read_existing(path: &Path) -> Result<Results> {
    match std::fs::read_to_string(path) {
        Ok(text) => Results::parse(&text)
            .with_context(|| format!("{}: not a results file; move it, or use another --out", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Results::default()),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

/// The files of the samples of a run, each with its router and task.
#[derive(Default)]
struct SampleFiles<'a>(BTreeMap<String, (&'a str, &'a str)>);

impl<'a> SampleFiles<'a> {
    /// Refuses routers and tasks of which two pairs have one file: its name does not tell where the router's name ends.
    fn new(routers: &'a [RouterArg], tasks: &'a [Task]) -> Result<Self> {
        let mut files = BTreeMap::new();
        let pairs = routers.iter().flat_map(|router| tasks.iter().map(move |task| (&*router.text, &*task.name)));
        for (router, task) in pairs {
            let file = samples_file(router, task);
            if let Some((other_router, other_task)) = files.insert(file.clone(), (router, task)) {
                return Err(usage::usage_error(format!(
                    "samples of two results (router and task), `{other_router}` on `{other_task}` and `{router}` on \
                     `{task}`, would be written to {file}; rename a task: NAME=FILE"
                )));
            }
        }
        Ok(Self(files))
    }

    /// Refuses files that belong to other results of the folder.
    fn ensure_apart_from(&self, existing: &Results, folder: &Path) -> Result<()> {
        let pairs =
            existing.routers().flat_map(|(router, tasks)| tasks.keys().map(move |task| (router, task.as_str())));
        for (router, task) in pairs {
            let file = samples_file(router, task);
            let own = self.0.get(&file).copied().unwrap_or((router, task));
            let error = || {
                usage::usage_error(format!(
                    "{}: samples of `{}` on `{}` would be written to {file}, which is the file of `{router}` on `{task}`, \
                     a result that is there already; use another --out",
                    folder.display(),
                    own.0,
                    own.1
                ))
            };
            ensure!(own == (router, task), error());
        }
        Ok(())
    }
}

/// Whether the samples of another result have the file of these.
fn shares_samples(results: &Results, router: &str, task: &str) -> bool {
    let file = samples_file(router, task);
    let mut pairs = results.routers().flat_map(|(router, tasks)| tasks.keys().map(move |task| (router, task.as_str())));
    pairs.any(|pair| pair != (router, task) && samples_file(pair.0, pair.1) == file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_eval::TruncatedRows;
    use std::fs;

    #[test]
    fn configurations_of_earlier_results_are_never_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let mut file = Results::default();
        file.config = json!({ EARLIER: "another version's form" });
        let text = file.to_json().unwrap();
        fs::write(&path, &text).unwrap();
        let (now, folder) = (Results::default(), Some(folder.path().to_owned()));
        let mut store = ResultsStore { now, folder, log_samples: false };
        let error = format!("{:#}", store.keep("base", "a", &no_scores()).unwrap_err());
        assert!(error.contains("results.json: `config.earlier` cannot be read"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    fn no_scores() -> TaskScores {
        TaskScores { n: 0, metrics: BTreeMap::new(), samples: Vec::new(), truncated: TruncatedRows::default() }
    }

    #[test]
    fn a_lease_of_a_killed_process_is_waited_for_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".lease"), "1\n").unwrap();
        fs::write(folder.path().join(".lease-1"), "a killed process, beat 3\n").unwrap();
        let mut store =
            ResultsStore { now: Results::default(), folder: Some(folder.path().to_owned()), log_samples: false };
        let scores = no_scores();
        store.keep("base", "a", &scores).unwrap();
        let lease = fs::read_to_string(folder.path().join(".lease-2")).unwrap();
        assert!(lease.starts_with("released"), "the next write need not wait: {lease}");
        store.keep("base", "b", &scores).unwrap();
        let results = read_existing(&folder.path().join("results.json")).unwrap();
        assert!(["a", "b"].into_iter().all(|task| results.get("base", task).is_some()));
    }
}
