//! Adapters of target tasks by weights of a library's experts.

use super::fits::Fits;
use crate::composition::{Ground, fit_weights};
use crate::experts::Opened;
use crate::training::World;
use anyhow::{Result, ensure};
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_format::hash::sha256;
use lorakit_route::Composition;
use lorakit_task::Example;
use lorakit_train::{Job, rows_sha256};
use serde_json::{Value, json};

/// Fits weights to the rows of each plan, and puts the merged adapters into `library`; those that are there by the same
/// rows and experts are left alone.
pub fn compose(world: &World, composition: &Composition, opened: &Opened, library: &Library, jobs: Vec<Job>) -> Fits {
    let mut fits = Fits::default();
    for mut job in jobs {
        job.train.truncate(composition.rows());
        let fit = compose_one(world, composition, opened, library, &job);
        fits.keep(&job.name, fit);
    }
    fits
}

fn compose_one(
    world: &World,
    composition: &Composition,
    opened: &Opened,
    library: &Library,
    job: &Job,
) -> Result<Value> {
    let (name, rows) = (&job.name, &job.train);
    let identity = identity(world, &composition.to_string(), opened, rows)?;
    let hash = sha256(identity.to_string().as_bytes());
    if let Some(record) = kept(world, library, name, &hash)? {
        world.context.output.status(format!("{name}: finished before"));
        return Ok(record.losses);
    }
    let ground = Ground { base: world.base, experts: &opened.experts, seed: world.context.seed };
    let fitted = fit_weights(composition, ground, rows)?;
    world.context.output.status(format!("{name}: {}", fitted.told(&opened.experts)));
    let (merge, coefficients) = composition.merge(&opened.experts, &fitted.weights)?;
    let merged = merge.apply(opened.experts.experts(), &coefficients)?;
    let adapter = merged.adapter.with_target_names(&world.base.modules());
    let losses = fitted.document(&opened.experts);
    let record = ExpertRecord { settings: identity, settings_sha256: hash, ..record(world, opened, job, &losses) };
    library.replace(name, &adapter, Some(&record))?;
    Ok(losses)
}

/// What an adapter's record says, however it was fitted.
pub(super) fn record(world: &World, opened: &Opened, job: &Job, losses: &Value) -> ExpertRecord {
    ExpertRecord {
        tasks: job.tasks.clone(),
        seen: opened.seen(0..opened.experts.len()),
        seed: world.context.seed,
        losses: losses.clone(),
        tokens: job.train.iter().map(|row| row.target.len() as u64).sum(),
        base_fingerprint: Some(world.base.identity().fingerprint.clone()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ExpertRecord::default()
    }
}

/// What decides the adapter.
pub(super) fn identity(world: &World, method: &str, opened: &Opened, rows: &[Example]) -> Result<Value> {
    let expert = |name: &String| Ok(json!({ "name": name, "sha256": opened.library.weights_sha256(name)? }));
    let mut identity = json!({
        "method": method,
        "base": world.base.identity().fingerprint,
        "experts": opened.experts.names().iter().map(expert).collect::<Result<Vec<_>>>()?,
        "rows": { "count": rows.len(), "sha256": rows_sha256(rows) },
        "seed": world.context.seed,
    });
    if let Some(dtype) = world.base.narrowed() {
        identity["dtype"] = dtype.as_str().into();
    }
    Ok(identity)
}

/// The record of an adapter that is there already and came about in the same way.
pub(super) fn kept(world: &World, library: &Library, name: &str, hash: &str) -> Result<Option<ExpertRecord>> {
    if world.restart || !library.contains(name) {
        return Ok(None);
    }
    let record = library.record(name)?.filter(|record| record.settings_sha256 == hash);
    ensure!(
        record.is_some(),
        "{}: `{name}` is there, and came of another method, library or rows; --restart would make it anew",
        library.root().display()
    );
    Ok(record)
}
