//! What the demo does: private experts, one for all tasks, clusters of the private ones, and an expert per cluster.

use super::world::World;
use crate::context::Context;
use crate::interrupt::Interrupted;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{Library, Matrix};
use lorakit_cluster::{
    Clusters, Embedded, Experts, MbcOptions, Method, Report, Similarity, Space, Spaces, adjusted_rand, curve, mbc,
};
use lorakit_fit::training::{TrainContext, TrainingPlan, jobs, joint, private};
use lorakit_fit::{OpenLibrary, Reporter as _, TrainingHooks, lock_for};
use lorakit_task::{Task, skills};
use lorakit_train::RunOptions;
use lorakit_train::initial_a;
use serde_json::Map;
use std::collections::BTreeMap;
use std::path::Path;

/// The libraries that were trained.
pub struct Libraries {
    /// One expert per task.
    pub private: OpenLibrary,
    /// One expert on all tasks.
    pub joint: OpenLibrary,
    /// One expert per cluster.
    pub clustered: OpenLibrary,
}

/// The clusters of the private experts, and how well they are the families.
pub struct Found {
    /// As clusters.json has them.
    pub clusters: Clusters,
    /// What the page shows of them.
    pub report: Report,
    /// The similarity of the private experts in the space that was clustered.
    pub similarity: Similarity,
    /// The adjusted Rand index of the clusters in each space with the families.
    pub indexes: Vec<(Space, f64)>,
}

/// Trains, clusters, and trains again; everything is kept in `out`, and what is there already is not done again.
pub fn run(world: &World, out: &Path, context: &Context) -> Result<(Libraries, Found)> {
    let private_library = train(world, &out.join("private"), &private(&world.training), context)?;
    let joint_library = train(world, &out.join("joint"), &[joint(&world.training)], context)?;
    let found = cluster(world, &out.join("private"), context)?;
    found.clusters.write(&out.join("clusters.json"))?;
    let task = |name: &String| {
        world.training.iter().find(|task| task.name == *name).context("a cluster has a task of no name")
    };
    let plans = found.clusters.clusters().iter().map(|cluster| {
        let tasks: Vec<&Task> = cluster.tasks.iter().map(task).collect::<Result<_>>()?;
        Ok(TrainingPlan::new(&cluster.name, tasks))
    });
    let clustered = train(world, &out.join("mbc"), &plans.collect::<Result<Vec<_>>>()?, context)?;
    Ok((Libraries { private: private_library, joint: joint_library, clustered }, found))
}

/// Trains the experts that `root` does not have yet.
fn train(world: &World, root: &Path, plans: &[TrainingPlan], context: &Context) -> Result<OpenLibrary> {
    let train = TrainContext {
        base: &world.base,
        tokenizer: &world.vocabulary,
        seed: context.seed,
        restart: false,
        reporter: context,
    };
    let jobs = jobs(plans, &world.settings, &train)?;
    let library = Library::open_or_create(root, Some(world.base.identity()))?;
    let _lock = lock_for(&library, &world.base, context)?;
    let TrainingHooks { stop, mut on_event } = context.training();
    let options = RunOptions { seed: context.seed, restart: false, stop: &**stop };
    let summary = lorakit_train::train_experts(&world.base, &library, jobs, &world.settings, &options, &mut *on_event)
        .with_context(|| format!("{}; another --out starts afresh", root.display()))?;
    drop((stop, on_event));
    if summary.stopped {
        return Err(Interrupted("the same command again goes on from here".to_owned()).into());
    }
    ensure!(summary.failed.is_empty(), "experts failed: {:?}", summary.failed);
    OpenLibrary::open(root, &world.base, &[])
}

/// MBC over the private experts, in the space of deltas, with as many clusters as there are families; beside it the
/// index of the other spaces.
fn cluster(world: &World, root: &Path, context: &Context) -> Result<Found> {
    let library = Library::open(root)?;
    let widths: BTreeMap<String, usize> = world.base.modules().into_iter().map(|m| (m.path, m.input)).collect();
    let start = |module: &str| -> Result<Matrix> {
        let input = *widths.get(module).with_context(|| format!("the base has no module {module}"))?;
        Matrix::new(world.settings.rank, input, initial_a(context.seed, module, world.settings.rank, input))
    };
    let experts = Experts::new(library.expert_names()?, |name| library.adapter(name))?.with_start(start);
    let families = skills::labels(experts.names().iter().map(String::as_str))?;
    let options = |space| MbcOptions { space, k: world.families.len(), seed: context.seed, ..MbcOptions::default() };
    let mut indexes = Vec::new();
    for space in Space::ALL {
        indexes.push((space, adjusted_rand(mbc(&experts, &options(space))?.labels(), &families)?));
    }
    let embedded = Embedded::of(&experts, &options(Space::Delta))?;
    let partition = embedded.partition(world.families.len())?;
    let clusters = Clusters::new(Method::Mbc, &partition, |expert| vec![expert.to_owned()], Map::new());
    let points = curve(&embedded, (experts.names().len() - 1).min(16))?;
    let report = Report::new(&clusters, &Spaces::of(&experts)?, Space::Delta, points)?;
    Ok(Found { clusters, report, similarity: Similarity::of(&experts, Space::Delta)?, indexes })
}
