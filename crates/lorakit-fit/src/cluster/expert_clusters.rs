//! MBC of a library's experts, with the number of clusters given or chosen.

use super::library_experts::{open_experts, records};
use crate::error::{FitError, Result};
use crate::reporter::Reporter;
use lorakit_adapter::Library;
use lorakit_cluster::{
    ClusterMethod, Clusters, ComparisonSpace, CurvePoint, ExpertSet, MbcEmbedding, MbcOptions, Partition, Similarity,
    silhouette_curve, suggest_k,
};
use serde_json::json;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// The largest number of clusters that is tried.
const MAX_CLUSTERS: usize = 24;

/// The number of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterCount {
    /// The one with the highest silhouette.
    Auto,
    /// This one.
    Fixed(NonZeroUsize),
}

impl FromStr for ClusterCount {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Fixed).map_err(|_| "expected a whole number of at least 1, or auto"),
        }
    }
}

/// Experts clustered by MBC.
#[derive(Clone, Debug)]
pub struct ClusteredExperts {
    /// The clusters.
    pub partition: Partition,
    /// The silhouette of every number of clusters that was tried; empty where none was.
    pub curve: Vec<CurvePoint>,
    /// The similarity of the experts' deltas, if these were clustered.
    pub delta: Option<Similarity>,
}

/// When to try other numbers of clusters: each is a k-means of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilhouetteCurve {
    /// Always: for a report.
    Always,
    /// Where the number is to be chosen.
    ToChoose,
}

/// Clusters experts by MBC. `option` is what the user calls `count`, for messages.
///
/// # Errors
/// Where there are fewer experts than clusters, or no number of clusters can be chosen.
pub fn cluster_experts(
    experts: &ExpertSet,
    options: &MbcOptions,
    (count, option): (ClusterCount, &str),
    curve: SilhouetteCurve,
    reporter: &dyn Reporter,
) -> Result<ClusteredExperts> {
    if let ClusterCount::Fixed(k) = count {
        let (option, count, experts) = (option.to_owned(), k.get(), experts.len());
        if count > experts {
            return Err(FitError::TooManyClusters { option, count, experts });
        }
    }
    let embedded = MbcEmbedding::of(experts, options)?;
    let curve = match (curve, count) {
        (SilhouetteCurve::ToChoose, ClusterCount::Fixed(_)) => Vec::new(),
        _ => silhouette_curve(&embedded, MAX_CLUSTERS)?,
    };
    let k = match count {
        ClusterCount::Fixed(k) => k.get(),
        ClusterCount::Auto => {
            let best = suggest_k(&curve).ok_or_else(|| FitError::NoClusterCount(option.to_owned()))?;
            reporter.status(&format!("k = {}: {}", best.k, best.reason));
            best.k
        }
    };
    Ok(ClusteredExperts { partition: embedded.partition(k)?, curve, delta: embedded.exact })
}

/// Clusters experts of a library by MBC on their deltas, with the default settings otherwise. Each expert stands for the
/// tasks that its record names.
///
/// # Errors
/// As [`cluster_experts`], and where an expert cannot be read.
pub fn cluster_deltas(
    library: &Library,
    names: Vec<String>,
    count: ClusterCount,
    seed: u64,
    reporter: &dyn Reporter,
) -> Result<Clusters> {
    let records = records(library, &names)?;
    let experts = open_experts(library, names, &records)?;
    let options = MbcOptions { space: ComparisonSpace::Delta, seed, ..MbcOptions::default() };
    let ClusteredExperts { partition, .. } =
        cluster_experts(&experts, &options, (count, "--mbc"), SilhouetteCurve::ToChoose, reporter)?;
    let tasks = |expert: &str| -> Vec<String> {
        records[expert].iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect()
    };
    let settings = [("k", json!(partition.k())), ("seed", json!(seed)), ("space", json!(options.space))];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    Ok(Clusters::new(ClusterMethod::Mbc, &partition, tasks, settings.into_iter().collect()))
}
