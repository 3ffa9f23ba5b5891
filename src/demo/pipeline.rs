//! Trains private experts and a joint one, clusters the private ones, and trains an expert per cluster.

use super::setup::Setup;
use crate::command_context::CommandContext;
use crate::interrupt::Interrupted;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{Library, Matrix};
use lorakit_cluster::{
    ClusterMethod, ClusteringReport, Clusters, ComparisonSpace, ExpertSet, MbcEmbedding, MbcOptions, Similarity,
    SpaceSimilarities, adjusted_rand, mbc, silhouette_curve,
};
use lorakit_fit::training::{TrainContext, TrainingPlan, jobs, joint, private};
use lorakit_fit::{OpenLibrary, Reporter as _, TrainingHooks, lock_for};
use lorakit_task::{Task, skills};
use lorakit_train::{Trainer, initial_a};
use serde_json::Map;
use std::collections::BTreeMap;
use std::path::Path;

/// The libraries that were trained.
pub struct TrainedLibraries {
    /// One expert per task.
    pub private: OpenLibrary,
    /// One expert for all tasks.
    pub joint: OpenLibrary,
    /// One expert per cluster.
    pub clustered: OpenLibrary,
}

/// The clusters of the private experts, compared with the true families.
pub struct FamilyClusters {
    /// The clusters as in clusters.json.
    pub clusters: Clusters,
    /// Their silhouettes and similarities.
    pub report: ClusteringReport,
    /// The similarity of the private experts in the clustered space.
    pub similarity: Similarity,
    /// For each space, the adjusted Rand index of its clusters with the true families.
    pub rand_indices: Vec<(ComparisonSpace, f64)>,
}

/// Runs all stages. Everything is kept in `out`; finished experts are not trained again.
pub fn run(setup: &Setup, out: &Path, context: &CommandContext) -> Result<(TrainedLibraries, FamilyClusters)> {
    let private_library = train(setup, &out.join("private"), &private(&setup.training), context)?;
    let joint_library = train(setup, &out.join("joint"), &[joint(&setup.training)], context)?;
    let clusters = cluster(setup, &out.join("private"), context)?;
    clusters.clusters.write(&out.join("clusters.json"))?;
    let task = |name: &String| {
        setup.training.iter().find(|task| task.name == *name).context("a cluster names an unknown task")
    };
    let plans = clusters.clusters.clusters().iter().map(|cluster| {
        let tasks: Vec<&Task> = cluster.tasks.iter().map(task).collect::<Result<_>>()?;
        Ok(TrainingPlan::new(&cluster.name, tasks))
    });
    let clustered = train(setup, &out.join("mbc"), &plans.collect::<Result<Vec<_>>>()?, context)?;
    Ok((TrainedLibraries { private: private_library, joint: joint_library, clustered }, clusters))
}

/// Trains the experts that the library at `root` lacks.
fn train(setup: &Setup, root: &Path, plans: &[TrainingPlan], context: &CommandContext) -> Result<OpenLibrary> {
    let train = TrainContext {
        base: &setup.base,
        tokenizer: &setup.tokenizer,
        seed: context.seed,
        restart: false,
        part: None,
        reporter: context,
    };
    let jobs = jobs(plans, &setup.config, &train)?;
    let library = Library::open_or_create(root, Some(setup.base.identity()))?;
    let library = library.guarded_by(&[&lock_for(&library, &setup.base, context)?]);
    let TrainingHooks { stop, mut on_event } = context.training();
    let (base, library, config) = (&setup.base, &library, &setup.config);
    let trainer = Trainer { base, library, config, seed: context.seed, restart: false, part: None, stop: &stop };
    let summary = trainer
        .train_experts(jobs, &mut on_event)
        .with_context(|| format!("{}; another --out starts over", root.display()))?;
    drop((stop, on_event));
    if summary.stopped {
        return Err(Interrupted("run the same command again to continue".to_owned()).into());
    }
    let failed: Vec<String> = summary.failed.iter().map(|(name, why)| format!("`{name}`: {why}")).collect();
    ensure!(failed.is_empty(), "experts failed: {}", failed.join("; "));
    Ok(OpenLibrary::open(root, &setup.base, &[])?)
}

/// MBC over the deltas of the private experts, with as many clusters as families, and the Rand index of every space.
fn cluster(setup: &Setup, root: &Path, context: &CommandContext) -> Result<FamilyClusters> {
    let library = Library::open(root)?;
    let widths: BTreeMap<String, usize> = setup.base.modules().into_iter().map(|m| (m.path, m.input)).collect();
    let start = |module: &str| -> Result<Matrix> {
        let input = *widths.get(module).with_context(|| format!("the base has no module `{module}`"))?;
        Ok(Matrix::new(setup.config.rank, input, initial_a(context.seed, module, setup.config.rank, input))?)
    };
    let experts = ExpertSet::new(library.expert_names()?, |name| library.adapter(name))?.with_initial_a(start);
    let families = skills::labels(experts.names().iter().map(String::as_str))?;
    let options = |space| MbcOptions { space, k: setup.families.len(), seed: context.seed, ..MbcOptions::default() };
    let mut rand_indices = Vec::new();
    for space in ComparisonSpace::ALL {
        rand_indices.push((space, adjusted_rand(mbc(&experts, &options(space))?.labels(), &families)?));
    }
    let embedded = MbcEmbedding::of(&experts, &options(ComparisonSpace::Delta))?;
    let partition = embedded.partition(setup.families.len())?;
    let clusters = Clusters::new(ClusterMethod::Mbc, &partition, |expert| vec![expert.to_owned()], Map::new());
    let points = silhouette_curve(&embedded, (experts.names().len() - 1).min(16))?;
    let report = ClusteringReport::new(&clusters, &SpaceSimilarities::of(&experts)?, ComparisonSpace::Delta, points)?;
    Ok(FamilyClusters { clusters, report, similarity: Similarity::of(&experts, ComparisonSpace::Delta)?, rand_indices })
}
