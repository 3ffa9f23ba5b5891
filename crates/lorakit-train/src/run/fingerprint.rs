//! What decides the weights of what is trained: the same is not trained again, and another is not taken for it.

use crate::job::{Init, Job, rows_sha256};
use crate::run::training_target::TrainingTarget;
use crate::train_config::TrainConfig;
use anyhow::Result;
use lorakit_format::hash::sha256;
use lorakit_model::Base;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What decides an expert's weights, as JSON.
pub(crate) fn job_fingerprint(
    job: &Job,
    base: &Base,
    target: &TrainingTarget,
    settings: &TrainConfig,
    seed: u64,
) -> Result<Value> {
    let start = |start: &Init| {
        let mut bytes = Vec::new();
        for (module, pair) in start.adapter.modules() {
            bytes.extend(module.as_bytes());
            let values = [pair.a(), pair.b()].map(|matrix| matrix.values());
            values.iter().flat_map(|values| values.iter()).for_each(|v| bytes.extend(v.to_le_bytes()));
        }
        json!({ "origin": start.origin, "sha256": sha256(&bytes) })
    };
    let mut identity = json!({
        "base": base.identity().fingerprint,
        "expert": job.name,
        "rows": rows_sha256(&job.train),
        "seed": seed,
        "settings": target.fingerprint_fields(settings),
        "start": job.start.as_ref().map(start),
        "tasks": serde_json::to_value(job.tasks.iter().map(|t| &t.name).collect::<Vec<_>>())?,
        "validation": rows_sha256(&job.validation),
    });
    if let Some(dtype) = base.narrowed() {
        identity["dtype"] = dtype.as_str().into();
    }
    if job.row_shards != 1 {
        identity["sharers"] = job.row_shards.into();
    }
    Ok(identity)
}

/// A fingerprint of it.
pub(crate) fn hash(value: &Value) -> String {
    sha256(value.to_string().as_bytes())
}

/// What differs between the recorded and the wanted settings, for a message.
pub(crate) fn differences(recorded: &Value, wanted: &Value) -> String {
    let mut found = Vec::new();
    // A key may stand in one of them alone, as the type of a base whose values are not those of its file.
    let keys = [recorded, wanted].into_iter().flat_map(|value| value.as_object()).flat_map(|object| object.keys());
    for key in keys.collect::<BTreeSet<_>>() {
        let value = &wanted[key];
        if key == "settings" {
            for (key, value) in value.as_object().into_iter().flatten() {
                let before = &recorded["settings"][key];
                if before != value {
                    found.push(format!("{key} was {before} and is now {value}"));
                }
            }
        } else if recorded[key] != *value {
            let differ = match key.as_str() {
                "rows" | "tasks" => "differ",
                _ => "differs",
            };
            found.push(format!("its {key} {differ}"));
        }
    }
    format!("trained otherwise: {}", if found.is_empty() { "its record differs".into() } else { found.join(", ") })
}
