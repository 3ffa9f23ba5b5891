//! MBC from tasks to cluster experts (Algorithm 1 of <https://arxiv.org/abs/2405.11157>): an expert per task, clusters
//! of these, an expert per cluster.
//!
//! The budget is the paper's: 40 % of the steps of each task go to its own expert, and 60 % to the expert of its
//! cluster, which starts from the common initial A again. (The authors' five epochs were two and three.)

use super::expert_clusters::{ClusterCount, cluster_deltas};
use crate::error::{FitError, Result};
use crate::pluralize::pluralize;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::{TrainingPlan, of_clusters, private as private_plans};
use crate::training::training_run::{TrainedKind, TrainingReport};
use crate::wait_for_lock::lock_for;
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_cluster::{Cluster, ClusterMethod, Clusters};
use lorakit_task::Task;
use lorakit_train::{PlannedPass, TrainConfig};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The share of the steps that go to the experts per task.
const PRIVATE: f64 = 0.4;

/// The subfolder of the library that holds the experts per task.
const PRIVATE_FOLDER: &str = "private";

/// The file in the library that holds their clusters.
const CLUSTERS_FILE: &str = "clusters.json";

/// The results of both stages.
#[derive(Debug)]
pub struct TwoStageMbc {
    /// The experts per task.
    pub private: TrainingReport,
    /// The second stage; `None` where the first was not completed, by this part or by others.
    pub clustered: Option<ClusteredStage>,
}

/// The result of the second stage.
#[derive(Debug)]
pub struct ClusteredStage {
    /// The clusters of the experts per task.
    pub clusters: Clusters,
    /// Where these are written.
    pub file: PathBuf,
    /// The experts per cluster.
    pub experts: TrainingReport,
}

/// Trains an expert per task, clusters them, and trains an expert per cluster into `library`, which is locked unless a part is
/// trained. Work that is in the library already is not repeated.
///
/// A part trains its share of the experts per task, and where those of all parts are there, its share of the experts per
/// cluster: the last to finish the first stage starts the second, and the others join when they are run again.
///
/// # Errors
/// Where a stage fails, or the library holds clusters of another run and `context` does not ask for a restart.
pub fn two_stage_mbc(
    context: &TrainContext,
    library: &Library,
    tasks: &[Task],
    count: ClusterCount,
    settings: &TrainConfig,
) -> Result<TwoStageMbc> {
    let (first, second) = budget(settings)?;
    let root = library.root().join(PRIVATE_FOLDER);
    let private_library = Library::open_or_create(&root, Some(context.base.identity()))?;
    // A part locks the library itself, for moments.
    let lock = || lock_for(&private_library, context.base, context.reporter);
    let lock = context.part.is_none().then(lock).transpose()?;
    let private_library = private_library.guarded_by(&lock.iter().collect::<Vec<_>>());
    context.reporter.status("experts per task:");
    let private = context.train(TrainedKind::Experts, &private_library, &private_plans(tasks), &first)?;
    if !private.is_complete() || !private.summary.missing_elsewhere.is_empty() {
        return Ok(TwoStageMbc { private, clustered: None });
    }
    let names = tasks.iter().map(|task| task.name.clone()).collect();
    let clusters = cluster_deltas(&private_library, names, count, context.seed, context.reporter)?;
    let file = library.root().join(CLUSTERS_FILE);
    if file.exists() && !context.restart {
        let before = Clusters::read(&file)?;
        if before != clusters {
            return Err(FitError::OtherClusters(file));
        }
    }
    if context.restart {
        remove_surplus(context, library, &file, &clusters)?;
    }
    // Parts that come here at once write the same.
    clusters.write(&file)?;
    context.reporter.status("experts per cluster:");
    let plans = of_clusters(&clusters, &file.display().to_string(), tasks, Some(&private_library))?;
    let experts = context.train(TrainedKind::Experts, library, &plans, &second)?;
    Ok(TwoStageMbc { private, clustered: Some(ClusteredStage { clusters, file, experts }) })
}

/// Removes the experts of clusters of an earlier run, in `file`, that the new clusters do not have: nothing would replace
/// them. An expert of such a name that was not trained on that cluster's tasks stays.
fn remove_surplus(context: &TrainContext, library: &Library, file: &Path, clusters: &Clusters) -> Result<()> {
    // A part locks the library itself, for moments.
    let lock = context.part.map(|_| library.lock_for_change()).transpose()?;
    let library = library.guarded_by(&lock.iter().collect::<Vec<_>>());
    // A restart replaces a damaged file too.
    let Ok(before) = Clusters::read(file) else { return Ok(()) };
    let is_new = |name: &str| clusters.clusters().iter().any(|cluster| cluster.name == name);
    for Cluster { name, tasks, .. } in before.clusters().iter().filter(|cluster| !is_new(&cluster.name)) {
        let record = if library.contains(name) { library.record(name)? } else { None };
        if record.is_some_and(|record| is_trained_on(&record, tasks)) {
            library.remove(name)?;
            context.reporter.status(&format!("{name}: removed, since no cluster has this name now"));
        }
    }
    Ok(())
}

/// Whether an expert was trained on exactly these tasks, which are sorted. Where there are none, nothing shows that.
fn is_trained_on(record: &ExpertRecord, tasks: &[String]) -> bool {
    let trained_on: BTreeSet<&String> = record.tasks.iter().map(|task| &task.name).collect();
    !tasks.is_empty() && trained_on.into_iter().eq(tasks)
}

/// The passes of both stages.
#[derive(Debug)]
pub struct TwoStagePlan {
    /// Of the experts per task.
    pub private: Vec<PlannedPass>,
    /// Of the experts per cluster; `None` where the clusters are not known yet.
    pub clustered: Option<Vec<PlannedPass>>,
}

/// The passes in which [`two_stage_mbc`] would train into the library at `root`, or those of a part. Nothing is written. The
/// second stage's are known once the first is completed and its experts are clustered.
///
/// # Errors
/// As [`two_stage_mbc`].
pub fn plan_two_stage_mbc(
    context: &TrainContext,
    root: &Path,
    tasks: &[Task],
    count: ClusterCount,
    settings: &TrainConfig,
) -> Result<TwoStagePlan> {
    let (first, second) = budget(settings)?;
    let identity = context.base.identity();
    let plan = |library: &Library, plans: &[TrainingPlan], settings: &TrainConfig| {
        context.plan(TrainedKind::Experts, library, plans, settings)
    };
    let library = Library::open_or_plan(root, Some(identity))?;
    let private_library = Library::open_or_plan(&root.join(PRIVATE_FOLDER), Some(identity))?;
    let plans = private_plans(tasks);
    let private = plan(&private_library, &plans, &first)?;
    let completed = plans.iter().all(|plan| private_library.contains(&plan.name));
    let file = root.join(CLUSTERS_FILE);
    if context.restart || !completed || !file.exists() {
        return Ok(TwoStagePlan { private, clustered: None });
    }
    let clusters = Clusters::read(&file)?;
    if !may_be_of(&clusters, count, context.seed) {
        return Err(FitError::OtherClusters(file));
    }
    let plans = of_clusters(&clusters, &file.display().to_string(), tasks, Some(&private_library))?;
    Ok(TwoStagePlan { private, clustered: Some(plan(&library, &plans, &second)?) })
}

/// Whether clusters record MBC with this number of clusters and seed. A number that is chosen would be known only by
/// clustering again, which is no part of a plan: it may be any.
fn may_be_of(clusters: &Clusters, count: ClusterCount, seed: u64) -> bool {
    let recorded = |name: &str| clusters.settings().get(name).and_then(Value::as_u64);
    let may_be_k = match count {
        ClusterCount::Auto => true,
        ClusterCount::Fixed(k) => recorded("k") == Some(k.get() as u64),
    };
    may_be_k && clusters.method() == ClusterMethod::Mbc && recorded("seed") == Some(seed)
}

/// Refuses a number of clusters that is too large for the number of tasks, before the first stage is trained.
///
/// # Errors
/// Where there are too few tasks.
pub fn ensure_enough_tasks(count: ClusterCount, tasks: usize) -> Result<()> {
    let tasks_found = pluralize(tasks, "task");
    let problem = match count {
        // The number is chosen between two and one fewer than there are experts.
        ClusterCount::Auto if tasks < 3 => format!("--mbc auto: {tasks_found} to cluster; expected at least 3"),
        ClusterCount::Fixed(k) if tasks < 2 => format!("--mbc {k}: {tasks_found} to cluster; expected at least 2"),
        ClusterCount::Fixed(k) if k.get() > tasks => {
            format!("--mbc {k}: expected at most {tasks}, the number of tasks")
        }
        _ => return Ok(()),
    };
    Err(FitError::TooFewTasks(problem))
}

/// The settings of the two stages, which share the steps, and those of the warm-up, where they are given.
fn budget(settings: &TrainConfig) -> Result<(TrainConfig, TrainConfig)> {
    let (name, all) = match settings.max_steps {
        Some(steps) => ("max_steps", steps as f64),
        None => ("num_epochs", settings.num_epochs),
    };
    if all < 2.0 {
        return Err(FitError::TooFewSteps { name, found: all });
    }
    let private = (PRIVATE * all).round().clamp(1.0, all - 1.0);
    // Of a warm-up that leaves steps, each stage has steps left too.
    let leaves = settings.max_steps.zip(settings.warmup_steps).is_some_and(|(all, warmup)| warmup < all);
    let capped = |warmup: usize, share: f64| if leaves { warmup.min(share as usize - 1) } else { warmup };
    let warmup = settings.warmup_steps.map(|steps| capped((PRIVATE * steps as f64).round() as usize, private));
    let with = |share: f64, warmup_steps: Option<usize>| match settings.max_steps {
        Some(_) => TrainConfig { max_steps: Some(share as usize), warmup_steps, ..settings.clone() },
        None => TrainConfig { num_epochs: share, warmup_steps, ..settings.clone() },
    };
    let rest = settings.warmup_steps.zip(warmup).map(|(given, first)| capped(given - first, all - private));
    Ok((with(private, warmup), with(all - private, rest)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_adapter::TaskRecord;
    use serde_json::json;

    #[test]
    fn plans_take_recorded_clusters_as_they_are() {
        let clusters = |method| {
            let cluster = Cluster { name: "c0".to_owned(), experts: vec!["a".to_owned()], tasks: Vec::new() };
            let settings = [("k", json!(2)), ("seed", json!(0))].map(|(name, value)| (name.to_owned(), value));
            Clusters::checked(method, vec![cluster], settings.into_iter().collect()).unwrap()
        };
        let (by_mbc, count) = (clusters(ClusterMethod::Mbc), |text: &str| text.parse::<ClusterCount>().unwrap());
        assert!(may_be_of(&by_mbc, count("2"), 0) && may_be_of(&by_mbc, count("auto"), 0));
        assert!(!may_be_of(&by_mbc, count("3"), 0) && !may_be_of(&by_mbc, count("2"), 1));
        assert!(!may_be_of(&by_mbc, count("auto"), 1));
        assert!(!may_be_of(&clusters(ClusterMethod::Random), count("auto"), 0));
    }

    #[test]
    fn only_known_tasks_show_what_an_expert_was_trained_on() {
        let record = |names: &[&str]| {
            let task = |name: &&str| TaskRecord { name: (*name).to_owned(), ..TaskRecord::default() };
            ExpertRecord { tasks: names.iter().map(task).collect(), ..ExpertRecord::default() }
        };
        let tasks = ["a", "b"].map(str::to_owned);
        assert!(is_trained_on(&record(&["b", "a"]), &tasks));
        assert!(!is_trained_on(&record(&["a"]), &tasks) && !is_trained_on(&record(&[]), &tasks));
        assert!(!is_trained_on(&record(&[]), &[]), "as of an expert that was added by hand");
    }

    #[test]
    fn the_budget_is_parted_two_to_three() {
        let epochs = |n| {
            budget(&TrainConfig { num_epochs: n, ..TrainConfig::default() }).map(|(a, b)| (a.num_epochs, b.num_epochs))
        };
        assert_eq!(epochs(5.0).unwrap(), (2.0, 3.0));
        assert_eq!(epochs(2.5).unwrap(), (1.0, 1.5));
        assert_eq!(epochs(2.0).unwrap(), (1.0, 1.0));
        assert!(epochs(1.0).unwrap_err().to_string().contains("`num_epochs` is 1"));
        let (first, second) = budget(&TrainConfig { max_steps: Some(40), ..TrainConfig::default() }).unwrap();
        assert_eq!((first.max_steps, second.max_steps), (Some(16), Some(24)));
        assert_eq!((first.warmup_steps, second.warmup_steps), (None, None));
        for (steps, warmup, stages, warmups) in
            [(10, 5, (4, 6), (2, 3)), (4, 3, (2, 2), (1, 1)), (2, 1, (1, 1), (0, 0)), (4, 4, (2, 2), (2, 2))]
        {
            let warmed = TrainConfig { max_steps: Some(steps), warmup_steps: Some(warmup), ..TrainConfig::default() };
            let (first, second) = budget(&warmed).unwrap();
            assert_eq!((first.max_steps, second.max_steps), (Some(stages.0), Some(stages.1)));
            assert_eq!((first.warmup_steps, second.warmup_steps), (Some(warmups.0), Some(warmups.1)));
        }
    }
}
