//! Adapters of a library that training on a target task starts from.

use crate::open_library::OpenLibrary;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_route::Expert;
use lorakit_route::merge::{Coefficients, parse_merge};
use lorakit_train::config_for_adapters;
use lorakit_train::{Init, TrainConfig};
use serde_json::json;

/// The expert that `shared` starts from by default; `train-experts --joint` trains it.
const JOINT: &str = "joint";

/// The mean of the library (µ of <https://arxiv.org/abs/2405.11157>): the means of the A's and of the scaled B's. Where
/// experts differ in shape, the mean of their deltas, truncated to `rank`.
pub(super) fn mean(opened: &OpenLibrary, rank: usize) -> Result<Init> {
    let experts = opened.experts.experts();
    let method = if of_one_form(experts) { "linear:convention=paper".to_owned() } else { format!("svd:rank={rank}") };
    let merge = parse_merge(&method)?;
    let mean = merge.merge(experts, &Coefficients::uniform(experts.len()))?.adapter;
    let scale = form_of(&experts[0].adapter).map_or(TrainConfig::default().scale(), |(_, scale)| scale);
    let origin = json!({
        "method": "mean",
        "merge": merge.to_string(),
        "experts": experts.iter().map(|expert| weights(opened, &expert.name)).collect::<Result<Vec<_>>>()?,
    });
    Ok(Init { adapter: at_scale(&mean, scale)?, origin, seen: opened.seen(0..experts.len()) })
}

/// One expert of the library: the one named, else `joint`, else the only one.
pub(super) fn shared(opened: &OpenLibrary, name: Option<&str>) -> Result<Init> {
    let experts = &opened.experts;
    let index = match name {
        Some(name) => experts.index(name)?,
        None if experts.len() == 1 => 0,
        None => experts.index(JOINT).with_context(|| {
            format!(
                "shared starts from an expert of all tasks: `lorakit train-experts --joint` makes `{JOINT}`; or name \
                 one, as in shared:NAME"
            )
        })?,
    };
    let expert = &experts.experts()[index];
    let origin = json!({
        "method": "shared",
        "experts": [weights(opened, &expert.name)?],
    });
    Ok(Init { adapter: expert.adapter.clone(), origin, seen: opened.seen([index]) })
}

fn weights(opened: &OpenLibrary, name: &str) -> Result<serde_json::Value> {
    Ok(json!({ "name": name, "sha256": opened.library.weights_sha256(name)? }))
}

/// The default settings of training, with the rank and scale of the adapter that it starts from.
pub(super) fn settings(start: Option<&Init>) -> Result<TrainConfig> {
    let defaults = TrainConfig::default();
    match start {
        None => Ok(defaults),
        Some(start) => {
            config_for_adapters(std::slice::from_ref(&start.adapter), &defaults).context("the adapter to start from")
        }
    }
}

/// Refuses settings with another rank or scale than those of the adapter that training starts from.
pub(super) fn ensure_form(start: &Init, settings: &TrainConfig) -> Result<()> {
    let Some((rank, scale)) = form_of(&start.adapter) else { return Ok(()) };
    ensure!(
        rank == settings.rank && (scale - settings.scale()).abs() < 1e-9,
        "the adapter to start from has rank {rank} and alpha {}, and the settings have rank {} and alpha {}; leave both \
         out to take the adapter's",
        scale * rank as f64,
        settings.rank,
        settings.alpha
    );
    Ok(())
}

/// The rank and scale of all modules, where they are the same.
fn form_of(adapter: &Adapter) -> Option<(usize, f64)> {
    let mut pairs = adapter.modules().values().map(|pair| (pair.rank(), pair.scale()));
    let first = pairs.next()?;
    pairs.all(|(rank, scale)| rank == first.0 && (scale - first.1).abs() < 1e-9).then_some(first)
}

/// Whether the A's and the B's can be averaged separately.
fn of_one_form(experts: &[Expert]) -> bool {
    let of = |expert: &Expert| form_of(&expert.adapter);
    let modules = |expert: &Expert| expert.adapter.modules().keys().cloned().collect::<Vec<_>>();
    of(&experts[0]).is_some()
        && experts.iter().all(|expert| of(expert) == of(&experts[0]) && modules(expert) == modules(&experts[0]))
}

/// The same deltas with another scale: B is rescaled.
fn at_scale(adapter: &Adapter, scale: f64) -> Result<Adapter> {
    ensure!(scale != 0.0, "the experts have the scale 0, from which nothing can be trained");
    let pair = |pair: &LowRank| -> Result<LowRank> {
        let factor = pair.scale() / scale;
        let b = pair.b().values().iter().map(|value| (f64::from(*value) * factor) as f32).collect();
        Ok(LowRank::new(pair.a().clone(), Matrix::new(pair.output(), pair.rank(), b)?, scale)?)
    };
    let pairs = adapter.modules().iter().map(|(module, of)| Ok((module.clone(), pair(of)?)));
    Ok(Adapter::new(pairs.collect::<Result<_>>()?).with_metadata(adapter.metadata().clone()))
}
