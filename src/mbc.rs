//! MBC from tasks to cluster experts (Algorithm 1 of <https://arxiv.org/abs/2405.11157>): experts per task, clusters of
//! them, experts per cluster.
//!
//! The budget is the paper's: 40 % of the steps of each task go to its own expert, the other 60 % to its cluster's,
//! which starts anew from the common start. (The authors' five epochs were two and three.)

use crate::clustering::mbc::{K, by_deltas};
use crate::clustering::tables;
use crate::lock::lock_for;
use crate::output::counted;
use crate::plan;
use crate::training::{Made, World};
use anyhow::{Result, ensure};
use lorakit_adapter::Library;
use lorakit_cluster::Clusters;
use lorakit_task::Task;
use lorakit_train::TrainConfig;
use serde_json::json;

/// The share of the steps that private experts have.
const PRIVATE: f64 = 0.4;

/// The folder, within the library of cluster experts, of the library of private ones.
const PRIVATE_FOLDER: &str = "private";

/// Trains, clusters and trains again; what is there already is not done again. `library` is locked.
pub fn run(world: &World, library: &Library, tasks: &[Task], k: K, settings: &TrainConfig) -> Result<()> {
    let (first, second) = budget(settings)?;
    let private = Library::open_or_create(&library.root().join(PRIVATE_FOLDER), Some(world.base.identity()))?;
    let _lock = lock_for(&private, world.base, world.context)?;
    world.context.output.status("experts per task:");
    let alone = world.train(Made::Experts, &private, &plan::private(tasks), &first)?;
    if !alone.is_whole() {
        world.context.output.result(&alone.document(&private), || alone.table())?;
        return alone.outcome();
    }
    let names = tasks.iter().map(|task| task.name.clone()).collect();
    let clusters = by_deltas(&private, names, k, world.context)?;
    let file = library.root().join("clusters.json");
    if file.exists() && !world.restart {
        let before = Clusters::read(&file)?;
        ensure!(
            before == clusters,
            "{}: the clusters of another run, with another K or other settings; --restart replaces them, or give another \
             --library",
            file.display()
        );
    }
    clusters.write(&file)?;
    world.context.output.status("experts per cluster:");
    let plans = plan::of_clusters(&clusters, &file.display().to_string(), tasks, Some(&private))?;
    let clustered = world.train(Made::Experts, library, &plans, &second)?;
    let mut document = clustered.document(library);
    document["clusters"] = json!(file);
    document["private"] = alone.document(&private);
    world.context.output.result(&document, || format!("{}\n\n{}", tables::of_tasks(&clusters), clustered.table()))?;
    clustered.outcome()
}

/// Refuses a number of clusters that so many tasks cannot have, before the first stage is trained.
pub fn ensure_possible(k: K, tasks: usize) -> Result<()> {
    match k {
        // The best of several numbers is chosen, from two to one fewer than there are experts.
        K::Auto => ensure!(tasks > 2, "--mbc auto: {} to cluster; expected at least 3", counted(tasks, "task")),
        K::Is(k) => {
            ensure!(tasks > 1, "--mbc {k}: {} to cluster; expected at least 2", counted(tasks, "task"));
            ensure!(k.get() <= tasks, "--mbc {k}: there are {tasks} tasks; expected at most that many clusters");
        }
    }
    Ok(())
}

/// The settings of the two stages.
fn budget(settings: &TrainConfig) -> Result<(TrainConfig, TrainConfig)> {
    let (name, all) = match settings.max_steps {
        Some(steps) => ("max_steps", steps),
        None => ("num_epochs", settings.num_epochs),
    };
    ensure!(all >= 2, "--mbc: setting {name} is {all}; expected at least 2, since both stages need some");
    let private = ((PRIVATE * all as f64).round() as usize).clamp(1, all - 1);
    let with = |share: usize| match settings.max_steps {
        Some(_) => TrainConfig { max_steps: Some(share), ..settings.clone() },
        None => TrainConfig { num_epochs: share, ..settings.clone() },
    };
    Ok((with(private), with(all - private)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_budget_is_parted_two_to_three() {
        let epochs = |n| {
            budget(&TrainConfig { num_epochs: n, ..TrainConfig::default() }).map(|(a, b)| (a.num_epochs, b.num_epochs))
        };
        assert_eq!(epochs(5).unwrap(), (2, 3));
        assert_eq!(epochs(2).unwrap(), (1, 1));
        assert!(epochs(1).unwrap_err().to_string().contains("num_epochs is 1"));
        let (first, second) = budget(&TrainConfig { max_steps: Some(40), ..TrainConfig::default() }).unwrap();
        assert_eq!((first.max_steps, second.max_steps), (Some(16), Some(24)));
    }
}
