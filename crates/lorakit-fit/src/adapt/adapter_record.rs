//! The record of an adapter that was fitted over a library, and whether one is there already.

use crate::error::{FitError, Result};
use crate::open_library::OpenLibrary;
use crate::trained_encoding::encoding_settings;
use crate::training::train_context::TrainContext;
use lorakit_adapter::{ExpertRecord, Library, OpaqueRecord};
use lorakit_task::Example;
use lorakit_train::{Job, rows_sha256};
use serde_json::{Value, json};

/// What the record says whatever the method.
pub(super) fn record(context: &TrainContext, opened: &OpenLibrary, job: &Job, losses: &Value) -> Result<ExpertRecord> {
    Ok(ExpertRecord {
        tasks: job.tasks.clone(),
        seen: opened.seen(0..opened.experts.len()),
        seed: context.seed,
        losses: OpaqueRecord::new(losses)?,
        tokens: job.train.iter().map(|row| row.loss_tokens() as u64).sum(),
        base_fingerprint: Some(context.base.identity().fingerprint.clone()),
        base_form: context.base.identity().form.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ExpertRecord::default()
    })
}

/// What decides the adapter, and is hashed.
pub(super) fn identity(context: &TrainContext, method: &str, opened: &OpenLibrary, rows: &[Example]) -> Result<Value> {
    let expert = |name: &String| Ok(json!({ "name": name, "sha256": opened.weights_sha256(name)? }));
    let mut identity = json!({
        "method": method,
        "base": context.base.identity().fingerprint,
        "experts": opened.experts.names().iter().map(expert).collect::<Result<Vec<_>>>()?,
        "rows": { "count": rows.len(), "sha256": rows_sha256(rows) },
        "seed": context.seed,
    });
    if let Some(settings) = encoding_settings(context.tokenizer.encoding()) {
        identity["settings"] = settings;
    }
    if let Some(dtype) = context.base.dtype_override() {
        identity["dtype"] = dtype.as_str().into();
    }
    Ok(identity)
}

/// The record of an adapter that is there already and was fitted in the same way.
///
/// # Errors
/// Where one is there that was fitted in another way, and `context` does not ask for a restart.
pub(super) fn kept(context: &TrainContext, library: &Library, name: &str, hash: &str) -> Result<Option<ExpertRecord>> {
    if context.restart || !library.contains(name) {
        return Ok(None);
    }
    let record = library.record(name)?.filter(|record| record.settings_sha256 == hash);
    match record {
        Some(record) => Ok(Some(record)),
        None => Err(FitError::OtherAdapter { library: library.root().to_owned(), name: name.to_owned() }),
    }
}
