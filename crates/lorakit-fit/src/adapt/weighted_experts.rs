//! `lorahub` and `cat`: adapters of target tasks by fitted weights of a library's experts.

use super::adapt_method::{Action, AdaptMethod, AdaptMethodInfo, Adapted, Configure};
use super::adapter_record::{identity, kept, record};
use super::outcomes::Outcomes;
use crate::error::{FitError, Result};
use crate::fitted_merge::fit_weights::fit_weights;
use crate::fitted_merge::weight_fit_context::WeightFitContext;
use crate::initial_seeds::warn_of_separate_mixing;
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::TrainingPlan;
use lorakit_adapter::{ExpertRecord, Library, OpaqueRecord};
use lorakit_format::hash::sha256;
use lorakit_route::{FITTED_MERGES, FittedMerge, parse_fitted_merge};
use lorakit_train::{Job, TrainConfig};
use serde_json::Value;
use std::fmt;
use std::sync::{Arc, Once};

/// The method `lorahub`.
pub static LORAHUB: AdaptMethodInfo = AdaptMethodInfo {
    name: "lorahub",
    settings: || defaults("lorahub"),
    summary: "weight a few experts by a few rows; mode=as-published,budget=40: the authors' search",
    link: Some("https://arxiv.org/abs/2307.13269"),
    needs_library: true,
    uses_train_config: false,
    parse: |typed| read(&LORAHUB, "lorahub", typed),
};

/// The method `cat`.
pub static CAT: AdaptMethodInfo = AdaptMethodInfo {
    name: "cat",
    settings: || defaults("cat_learned"),
    summary: "weight all experts layer by layer, by gradient descent",
    link: Some("https://arxiv.org/abs/2410.13025"),
    needs_library: true,
    uses_train_config: false,
    parse: |typed| read(&CAT, "cat_learned", typed),
};

/// The default settings of a fitted merge, in brackets.
fn defaults(merge: &str) -> String {
    let info = FITTED_MERGES.iter().find(|info| info.name == merge);
    info.map_or(String::new(), |info| format!("[:{}]", (info.defaults)(info.name)))
}

/// Reads a method that fits the weights of `merge`.
fn read(info: &'static AdaptMethodInfo, merge: &str, typed: Option<&str>) -> Result<Arc<dyn AdaptMethod>> {
    let typed = typed.map_or(merge.to_owned(), |settings| format!("{merge}:{settings}"));
    Ok(Arc::new(WeightedExperts { info, merge: parse_fitted_merge(&typed)? }))
}

/// Weights of the library's experts.
#[derive(Debug)]
struct WeightedExperts {
    info: &'static AdaptMethodInfo,
    merge: Arc<dyn FittedMerge>,
}

impl fmt::Display for WeightedExperts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.merge.to_string().split_once(':') {
            Some((_, settings)) => write!(f, "{}:{settings}", self.info.name),
            None => f.write_str(self.info.name),
        }
    }
}

impl AdaptMethod for WeightedExperts {
    fn info(&self) -> &'static AdaptMethodInfo {
        self.info
    }

    fn action<'a>(&'a self, library: Option<&'a OpenLibrary>, _: &Configure) -> Result<Box<dyn Action + 'a>> {
        let opened = library.ok_or(FitError::NeedsLibrary)?;
        self.merge.check(&opened.experts)?;
        Ok(Box::new(WeightedExpertsFit { merge: &*self.merge, opened, config: TrainConfig::default() }))
    }
}

/// The fit of weights over an open library.
struct WeightedExpertsFit<'a> {
    merge: &'a dyn FittedMerge,
    opened: &'a OpenLibrary,
    config: TrainConfig,
}

impl Action for WeightedExpertsFit<'_> {
    fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Fits weights to the rows of each job, and writes the merged adapters into `out`. Those that are there from the same
    /// rows and experts are kept.
    fn run(&self, context: &TrainContext, jobs: Vec<(TrainingPlan, Job)>, out: &Library) -> Result<Adapted> {
        let (mut outcomes, seeds) = (Outcomes::default(), Once::new());
        for (_, mut job) in jobs {
            job.train.truncate(self.merge.rows());
            outcomes.add(&job.name, self.fit_one(context, &job, out, &seeds));
        }
        Ok(Adapted::Weighted(outcomes))
    }
}

impl WeightedExpertsFit<'_> {
    /// `seeds`: the warning that the experts started from several seeds, which is the same for all jobs.
    fn fit_one(&self, context: &TrainContext, job: &Job, out: &Library, seeds: &Once) -> Result<Value> {
        let (name, rows, opened) = (&job.name, &job.train, self.opened);
        let identity = identity(context, &self.merge.to_string(), opened, rows)?;
        let hash = sha256(identity.to_string().as_bytes());
        if let Some(record) = kept(context, out, name, &hash)? {
            context.reporter.status(&format!("{name}: finished before"));
            return Ok(record.losses.read()?);
        }
        let fit_context = WeightFitContext { base: context.base, experts: &opened.experts, seed: context.seed };
        let fitted = fit_weights(self.merge, fit_context, rows)?;
        context.reporter.status(&format!("{name}: {}", fitted.summary(&opened.experts)));
        let (merge, coefficients) = self.merge.merge(&opened.experts, &fitted.weights)?;
        if merge.mixes_separately() {
            seeds.call_once(|| {
                warn_of_separate_mixing(&self.merge.to_string(), opened.named_records(), context.reporter);
            });
        }
        let merged = merge.merge(opened.experts.experts(), &coefficients)?;
        let adapter = merged.adapter.with_target_names(&context.base.adaptable_modules()).with_one_rank()?;
        let losses = fitted.document(&opened.experts);
        let record = ExpertRecord {
            settings: OpaqueRecord::new(&identity)?,
            settings_sha256: hash,
            ..record(context, opened, job, &losses)?
        };
        out.replace(name, &adapter, Some(&record))?;
        Ok(losses)
    }
}
