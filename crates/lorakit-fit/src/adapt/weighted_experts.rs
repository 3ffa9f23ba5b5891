//! Adapters of target tasks by weights of a library's experts.

use super::adapter_record::{identity, kept, record};
use super::outcomes::Outcomes;
use crate::fitted_merge::fit_weights::fit_weights;
use crate::fitted_merge::weight_fit::WeightFit;
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use anyhow::Result;
use lorakit_adapter::{ExpertRecord, Library, OpaqueRecord};
use lorakit_format::hash::sha256;
use lorakit_route::FittedMerge;
use lorakit_train::Job;
use serde_json::Value;

/// Fits weights to the rows of each job, and writes the merged adapters into `library`. Those that are there from the same
/// rows and experts are kept.
pub(super) fn compose(
    context: &TrainContext,
    merge: &dyn FittedMerge,
    opened: &OpenLibrary,
    library: &Library,
    jobs: Vec<Job>,
) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for mut job in jobs {
        job.train.truncate(merge.rows());
        let fit = compose_one(context, merge, opened, library, &job);
        outcomes.add(&job.name, fit);
    }
    outcomes
}

fn compose_one(
    context: &TrainContext,
    composition: &dyn FittedMerge,
    opened: &OpenLibrary,
    library: &Library,
    job: &Job,
) -> Result<Value> {
    let (name, rows) = (&job.name, &job.train);
    let identity = identity(context, &composition.to_string(), opened, rows)?;
    let hash = sha256(identity.to_string().as_bytes());
    if let Some(record) = kept(context, library, name, &hash)? {
        context.reporter.status(&format!("{name}: finished before"));
        return Ok(record.losses.read()?);
    }
    let over = WeightFit { base: context.base, experts: &opened.experts, seed: context.seed };
    let fitted = fit_weights(composition, over, rows)?;
    context.reporter.status(&format!("{name}: {}", fitted.summary(&opened.experts)));
    let (merge, coefficients) = composition.merge(&opened.experts, &fitted.weights)?;
    let merged = merge.merge(opened.experts.experts(), &coefficients)?;
    let adapter = merged.adapter.with_target_names(&context.base.modules());
    let losses = fitted.document(&opened.experts);
    let record = ExpertRecord {
        settings: OpaqueRecord::new(&identity)?,
        settings_sha256: hash,
        ..record(context, opened, job, &losses)?
    };
    library.replace(name, &adapter, Some(&record))?;
    Ok(losses)
}
