//! MBC of a library's experts, with the number of clusters given or chosen.

use super::start::{experts, records};
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::Library;
use lorakit_cluster::{
    Clusters, CurvePoint, Embedded, Experts, MbcOptions, Method, Partition, Space, curve, suggestion,
};
use serde_json::json;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// The largest number of clusters that is tried for `-k auto` and for the report's curve.
const MOST_CLUSTERS: usize = 24;

/// `-k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum K {
    /// The number with the best silhouette.
    Auto,
    /// This number.
    Is(NonZeroUsize),
}

impl FromStr for K {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Is).map_err(|_| "expected a whole number of at least 1, or auto"),
        }
    }
}

/// MBC. The number of clusters comes with the option that gave it.
pub fn clustered(
    experts: &Experts,
    options: &MbcOptions,
    (k, option): (K, &str),
    context: &Context,
) -> Result<(Partition, Vec<CurvePoint>)> {
    if let K::Is(k) = k {
        let known = experts.len();
        ensure!(k.get() <= known, "{option} {k}: there are {known} experts; expected at most that");
    }
    let embedded = Embedded::of(experts, options)?;
    let curve = curve(&embedded, MOST_CLUSTERS)?;
    let k = match k {
        K::Is(k) => k.get(),
        K::Auto => {
            let best = suggestion(&curve).with_context(|| {
                format!(
                    "{option} auto: too few experts that differ to choose a number of clusters; give {option} a number"
                )
            })?;
            context.output.status(format!("k = {}: {}", best.k, best.reason));
            best.k
        }
    };
    Ok((embedded.partition(k)?, curve))
}

/// MBC in the space of deltas with its other settings as they are by default: these experts of a library, each trained
/// on the tasks that its record names.
pub fn by_deltas(library: &Library, names: Vec<String>, k: K, context: &Context) -> Result<Clusters> {
    let records = records(library, &names)?;
    let experts = experts(library, names, &records)?;
    let options = MbcOptions { space: Space::Delta, seed: context.seed, ..MbcOptions::default() };
    let (partition, _) = clustered(&experts, &options, (k, "--mbc"), context)?;
    let tasks = |expert: &str| -> Vec<String> {
        records[expert].iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect()
    };
    let settings = [("k", json!(partition.k())), ("seed", json!(context.seed)), ("space", json!(options.space))];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    Ok(Clusters::new(Method::Mbc, &partition, tasks, settings.into_iter().collect()))
}
