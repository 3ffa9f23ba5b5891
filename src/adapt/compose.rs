//! Adapters of target tasks by weights of a library's experts.

use crate::composition::{Ground, fit_weights};
use crate::experts::Opened;
use crate::plan::Plan;
use crate::training::World;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::sha256::sha256;
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_route::Composition;
use lorakit_task::Example;
use lorakit_train::Job;
use serde_json::{Value, json};

/// Fits weights to the rows of each plan, and puts the merged adapters into `library`; those that are there by the same
/// rows and experts are left alone. Returns what is known of each.
pub fn compose(
    world: &World,
    composition: &Composition,
    opened: &Opened,
    library: &Library,
    plans: &[Plan],
    jobs: Vec<Job>,
) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for (plan, job) in plans.iter().zip(jobs) {
        let name = &plan.name;
        let mut rows = job.train;
        rows.truncate(composition.rows());
        let identity = identity(world, &composition.to_string(), opened, &rows)?;
        let hash = sha256(identity.to_string().as_bytes());
        if let Some(record) = kept(world, library, name, &hash)? {
            world.context.output.status(format!("{name}: finished before"));
            found.push(record.losses);
            continue;
        }
        let ground = Ground { base: world.base, experts: &opened.experts, seed: world.context.seed };
        let fitted = fit_weights(composition, ground, &rows).with_context(|| format!("task `{name}`"))?;
        world.context.output.status(format!("{name}: {}", fitted.told(&opened.experts)));
        let (merge, coefficients) = composition.merge(&opened.experts, &fitted.weights)?;
        let merged = merge.apply(opened.experts.experts(), &coefficients)?;
        let adapter = merged.adapter.named_within(&world.base.modules());
        let losses = fitted.document(&opened.experts);
        let record = ExpertRecord {
            tasks: job.tasks,
            settings: identity,
            settings_sha256: hash,
            seed: world.context.seed,
            losses: losses.clone(),
            tokens: rows.iter().map(|row| row.target.len() as u64).sum(),
            base_fingerprint: Some(world.base.identity().fingerprint.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ExpertRecord::default()
        };
        library.replace(name, &adapter, Some(&record))?;
        found.push(losses);
    }
    Ok(found)
}

/// What decides the adapter.
pub(super) fn identity(world: &World, method: &str, opened: &Opened, rows: &[Example]) -> Result<Value> {
    let mut bytes = Vec::new();
    for part in rows.iter().flat_map(|row| [&row.prompt, &row.target]) {
        bytes.extend((part.len() as u64).to_le_bytes());
        part.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    }
    let expert = |name: &String| Ok(json!({ "name": name, "sha256": opened.library.weights_sha256(name)? }));
    Ok(json!({
        "method": method,
        "base": world.base.identity().fingerprint,
        "experts": opened.experts.names().iter().map(expert).collect::<Result<Vec<_>>>()?,
        "rows": { "count": rows.len(), "sha256": sha256(&bytes) },
        "seed": world.context.seed,
    }))
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
