//! The scores of a run on disk, beside those of earlier runs.

use crate::args::router_arg::RouterArg;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use lorakit_eval::{Results, TaskScores, samples_file, samples_jsonl};
use lorakit_format::atomic::write_file;
use lorakit_task::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where scores are kept, and whether with every row.
pub struct Place<'a> {
    /// The folder of results.json, where they are kept at all.
    pub folder: Option<&'a Path>,
    /// Whether every row is written there with its scores.
    pub log_samples: bool,
}

/// The scores so far, on disk after every task: an interruption loses only the one at hand.
pub struct Store {
    /// Those of this run.
    pub now: Results,
    /// Those of results.json, where there is one.
    file: Option<(PathBuf, Results)>,
    /// What decided the others of results.json.
    earlier: Vec<Earlier>,
    log_samples: bool,
}

/// Results of an earlier run that stay, with what decided them: an entry of `earlier` in the configuration.
#[derive(Deserialize, Serialize)]
struct Earlier {
    config: Value,
    versions: Value,
    /// The tasks by their routers.
    results: BTreeMap<String, BTreeSet<String>>,
}

impl Earlier {
    /// All that a file of results says of where they came from.
    fn of(file: &mut Results) -> Vec<Self> {
        let earlier = file.config.as_object_mut().and_then(|config| config.remove(EARLIER));
        let mut all: Vec<Self> = earlier.and_then(|earlier| serde_json::from_value(earlier).ok()).unwrap_or_default();
        let known = |router: &str, task: &String| all.iter().any(|of| of.has(router, task));
        let mut results = BTreeMap::new();
        for (router, tasks) in file.routers() {
            let own: BTreeSet<String> = tasks.keys().filter(|task| !known(router, task)).cloned().collect();
            results.insert(router.to_owned(), own);
        }
        all.push(Self { config: file.config.take(), versions: file.versions.take(), results });
        all
    }

    fn has(&self, router: &str, task: &String) -> bool {
        self.results.get(router).is_some_and(|tasks| tasks.contains(task))
    }

    /// Forgets a result, which another has replaced.
    fn forget(&mut self, router: &str, task: &str) {
        if let Some(tasks) = self.results.get_mut(router) {
            tasks.remove(task);
        }
        self.results.retain(|_, tasks| !tasks.is_empty());
    }
}

/// The key of the configuration under which results of earlier runs have theirs.
const EARLIER: &str = "earlier";

impl Store {
    /// A place for the scores of `routers` on `tasks`, which `config` decides.
    pub fn open(place: Place, routers: &[RouterArg], tasks: &[Task], config: Value, context: &Context) -> Result<Self> {
        let mut now = Results::default();
        (now.config, now.versions) = (config, json!({ "lorakit": env!("CARGO_PKG_VERSION") }));
        let Some(folder) = place.folder else {
            return Ok(Self { now, file: None, earlier: Vec::new(), log_samples: false });
        };
        if place.log_samples {
            let pairs =
                routers.iter().flat_map(|router| tasks.iter().map(move |task| samples_file(&router.text, &task.name)));
            let mut names = BTreeSet::new();
            let twice = pairs.into_iter().find(|name| !names.insert(name.clone()));
            ensure!(
                twice.is_none(),
                "two sets of samples would be written to {}; give a task another name: NAME=FILE",
                twice.unwrap_or_default()
            );
        }
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
        let mut file = read_before(&folder.join("results.json"))?;
        if file.routers().next().is_some() && !comparable(&file.config, &now.config) {
            context.output.warn(format!(
                "{}: results of other routers and tasks stay there, and came of other settings, which stay beside them",
                folder.display()
            ));
        }
        let earlier = Earlier::of(&mut file);
        file.merge(now.clone());
        Ok(Self { now, file: Some((folder.to_owned(), file)), earlier, log_samples: place.log_samples })
    }

    /// Takes the scores of a router on a task, and writes what there is.
    pub fn keep(&mut self, router: &str, task: &str, scores: &TaskScores) -> Result<()> {
        self.now.insert(router, task, scores);
        let Some((folder, results)) = &mut self.file else { return Ok(()) };
        if self.log_samples {
            write_file(&folder.join(samples_file(router, task)), samples_jsonl(&scores.samples)?.as_bytes())?;
        }
        results.insert(router, task, scores);
        self.earlier.iter_mut().for_each(|earlier| earlier.forget(router, task));
        self.earlier.retain(|earlier| !earlier.results.is_empty());
        results.config = self.now.config.clone();
        if !self.earlier.is_empty() {
            results.config[EARLIER] = serde_json::to_value(&self.earlier)?;
        }
        Ok(write_file(&folder.join("results.json"), results.to_json()?.as_bytes())?)
    }
}

/// The results of an earlier run; none where there is no file.
fn read_before(path: &Path) -> Result<Results> {
    match std::fs::read_to_string(path) {
        Ok(text) => Results::parse(&text)
            .with_context(|| format!("{}: in the way; move it, or give another --out", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Results::default()),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

/// Whether two runs scored the same base and experts on the same kind of rows.
fn comparable(before: &Value, now: &Value) -> bool {
    let base_alone = |config: &Value| config["experts"].is_null();
    ["base", "dtype", "limit", "split"].iter().all(|key| before[key] == now[key])
        && (base_alone(before)
            || base_alone(now)
            || (before["experts"] == now["experts"] && before["library"] == now["library"]))
}
