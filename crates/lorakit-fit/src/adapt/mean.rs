//! `mean`: training starts from the mean of the library's experts.

use super::adapt_method::{Action, AdaptMethod, AdaptMethodInfo, Configure, no_settings};
use super::init_training::{InitTraining, SourceExpert, rank_and_scale};
use crate::error::{FitError, Result};
use crate::initial_seeds::differing_initial_seeds;
use crate::open_library::OpenLibrary;
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_route::Expert;
use lorakit_route::merge::{Coefficients, parse_merge};
use lorakit_train::{Init, TrainConfig};
use serde_json::json;
use std::fmt;
use std::sync::Arc;

/// The method `mean`.
pub static MEAN: AdaptMethodInfo = AdaptMethodInfo {
    name: "mean",
    settings: no_settings,
    summary: "train from the mean of the library's experts, µ of the paper",
    link: Some("https://arxiv.org/abs/2405.11157"),
    needs_library: true,
    uses_train_config: true,
    parse: |typed| MEAN.ensure_no_settings(typed).map(|()| Arc::new(Mean) as Arc<dyn AdaptMethod>),
};

/// Training from the library's mean.
#[derive(Debug)]
struct Mean;

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(MEAN.name)
    }
}

impl AdaptMethod for Mean {
    fn info(&self) -> &'static AdaptMethodInfo {
        &MEAN
    }

    fn action<'a>(&'a self, library: Option<&'a OpenLibrary>, configure: &Configure) -> Result<Box<dyn Action + 'a>> {
        let opened = library.ok_or(FitError::NeedsLibrary)?;
        let init = mean(opened, configure(TrainConfig::default())?.rank)?;
        let differing = differing_initial_seeds(opened.named_records());
        // Means of deltas suit any experts.
        let differing = differing.filter(|_| have_one_shape(opened.experts.experts()));
        let warning = differing.map(|differing| {
            format!("mean averages A and B separately, which requires a common initial A: {differing}")
        });
        Ok(Box::new(InitTraining::new(Some(init), configure)?.with_warning(warning)))
    }
}

/// The mean of the library (µ of <https://arxiv.org/abs/2405.11157>): the means of the A's and of the scaled B's. Where
/// experts differ in shape, the mean of their deltas, truncated to `rank`.
fn mean(opened: &OpenLibrary, rank: usize) -> Result<Init> {
    let experts = opened.experts.experts();
    let method =
        if have_one_shape(experts) { "linear:convention=paper".to_owned() } else { format!("svd:rank={rank}") };
    let merge = parse_merge(&method)?;
    let mean = merge.merge(experts, &Coefficients::uniform(experts.len()))?.adapter;
    let scale = rank_and_scale(&experts[0].adapter).map_or(TrainConfig::default().scale(), |(_, scale)| scale);
    let origin = json!({
        "method": "mean",
        "merge": merge.to_string(),
        "experts": experts.iter().map(|expert| SourceExpert::of(opened, &expert.name)).collect::<Result<Vec<_>>>()?,
    });
    Ok(Init { adapter: at_scale(&mean, scale)?, origin, seen: opened.seen(0..experts.len()) })
}

/// Whether the A's and the B's can be averaged separately.
fn have_one_shape(experts: &[Expert]) -> bool {
    let of = |expert: &Expert| rank_and_scale(&expert.adapter);
    let modules = |expert: &Expert| expert.adapter.modules().keys().cloned().collect::<Vec<_>>();
    of(&experts[0]).is_some()
        && experts.iter().all(|expert| of(expert) == of(&experts[0]) && modules(expert) == modules(&experts[0]))
}

/// The same deltas with another scale: B is rescaled.
fn at_scale(adapter: &Adapter, scale: f64) -> Result<Adapter> {
    if scale == 0.0 {
        return Err(FitError::ZeroScale);
    }
    let pair = |pair: &LowRank| -> Result<LowRank> {
        let factor = pair.scale() / scale;
        let b = pair.b().values().iter().map(|value| (f64::from(*value) * factor) as f32).collect();
        Ok(LowRank::new(pair.a().clone(), Matrix::new(pair.output(), pair.rank(), b)?, scale)?)
    };
    let pairs = adapter.modules().iter().map(|(module, update)| Ok((module.clone(), pair(update)?)));
    Ok(Adapter::new(pairs.collect::<Result<_>>()?).with_metadata(adapter.metadata().clone()))
}
