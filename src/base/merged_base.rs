//! A base with an adapter merged into its weights: as a Hugging Face model folder, or in memory.

use crate::base::model_files;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::interrupt::Interrupted;
use anyhow::{Context as _, Result, bail};
use lorakit_adapter::{Adapter, LowRank};
use lorakit_format::atomic::write_file;
use lorakit_format::read_text;
use lorakit_model::{Base, BaseOptions, ModelError, Rounding, StorageDtype};
use lorakit_route::merge::{Orientation, add_to_weight};
use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::Ordering;

/// The index of sharded weights. Their names and files do not change, so it stays valid.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The precision of merged weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergePrecision {
    /// Rounded to the type of the stored weight.
    Rounded,
    /// f32, without rounding.
    Exact,
}

/// Refuses a change of the embedding or the head where both are one weight, which cannot take it: to merge it, or in
/// llama.cpp, which has no tensor for such a head.
pub fn ensure_separate_weights(place: &ResolvedBase, adapter: &Adapter) -> Result<()> {
    let (config, checkpoint) = (place.config()?, place.checkpoint()?);
    let head = tensor(config.descriptor.lm_head);
    let tied = config.tied && !checkpoint.names().any(|name| name == head);
    let shared = [config.descriptor.embedding, config.descriptor.lm_head];
    match shared.iter().find(|module| tied && adapter.modules().contains_key(**module)) {
        None => Ok(()),
        Some(module) => bail!(
            "the base's head is tied to its embedding (tie_word_embeddings), so that no weight can take a change of \
             `{module}` alone. Such an expert can be served, but not merged into the base or exported as GGUF; leave it out (--experts)"
        ),
    }
}

/// Writes the base with `adapter` merged into its weights to `folder`, which exists: weights in their stored types,
/// configuration and tokenizer as they are. The result is opened once as a check.
pub fn write(place: &ResolvedBase, adapter: &Adapter, folder: &Path, context: &CommandContext) -> Result<Rounding> {
    ensure_separate_weights(place, adapter)?;
    model_files::write(place, folder)?;
    if let ResolvedBase::Folder { folder: source, .. } = place {
        copy_index(source, folder)?;
    }
    let checkpoint = place.checkpoint()?;
    // Ctrl-C stops between two weights, so that no large partial model is left behind.
    let stop = context.interrupt.hold();
    let mut change = change(adapter);
    let rounding = checkpoint.write_edited(folder, &names(adapter), &mut |name, values| {
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted("nothing was written".to_owned()).into());
        }
        change(name, values)
    });
    let rounding = rounding.map_err(|error| match error {
        ModelError::Edit { source, .. } if source.is::<Interrupted>() => {
            Interrupted("nothing was written".to_owned()).into()
        }
        other => anyhow::Error::from(other),
    })?;
    Base::open(folder, &BaseOptions::default()).context("the merged base cannot be opened")?;
    Ok(rounding)
}

/// The base with `adapter` merged into its weights, in memory. Weights that the adapter does not target stay in their
/// files.
pub fn in_memory(
    place: &ResolvedBase,
    adapter: &Adapter,
    precision: MergePrecision,
    options: &BaseOptions,
) -> Result<Base> {
    ensure_separate_weights(place, adapter)?;
    let keep = options.dtype.and_then(storage_dtype);
    let checkpoint = place.checkpoint()?.with_edits(
        &names(adapter),
        keep,
        precision == MergePrecision::Exact,
        &mut change(adapter),
    )?;
    Ok(Base::from_checkpoint("merged", place.config()?, &checkpoint, options)?)
}

/// The narrowest type of the weights that `adapter` targets.
pub fn narrowest_dtype(place: &ResolvedBase, adapter: &Adapter, options: &BaseOptions) -> Result<StorageDtype> {
    ensure_separate_weights(place, adapter)?;
    match options.dtype.and_then(storage_dtype) {
        Some(dtype) => Ok(dtype),
        None => Ok(place.checkpoint()?.narrowest_dtype(&names(adapter))?),
    }
}

/// The type that weights are cast to for `--dtype`.
fn storage_dtype(dtype: candle_core::DType) -> Option<StorageDtype> {
    [StorageDtype::F16, StorageDtype::BF16].into_iter().find(|stored| stored.dtype() == dtype)
}

/// The tensors that an adapter targets.
fn names(adapter: &Adapter) -> BTreeSet<String> {
    adapter.modules().keys().map(|module| tensor(module)).collect()
}

fn tensor(module: &str) -> String {
    format!("{module}.weight")
}

/// Adds a module's update to its weight, `[out, in]` as in `torch.nn.Linear`, or `[vocabulary, out]` of an embedding.
fn change(adapter: &Adapter) -> impl FnMut(&str, &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> + '_ {
    |name, values| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let update: &LowRank =
            adapter.modules().get(module).ok_or_else(|| format!("the adapter has no module `{module}`"))?;
        let orientation = Orientation::of(adapter.metadata().embeddings.contains(module));
        Ok(add_to_weight(module, update, values, orientation)?)
    }
}

/// Copies the index of sharded weights, without the tensors that only describe a quantised weight: it is not written so. A
/// `model.safetensors` takes precedence over an index beside it, as when a base is opened.
fn copy_index(source: &Path, folder: &Path) -> Result<()> {
    let from = source.join(INDEX_FILE);
    if !from.is_file() || source.join("model.safetensors").exists() {
        return Ok(());
    }
    let text = read_text(&from)?;
    let mut index: Value = serde_json::from_str(&text).with_context(|| from.display().to_string())?;
    let describes_weight = |name: &str| name.contains(".weight.");
    let written = match index["weight_map"].as_object_mut() {
        Some(places) if places.keys().any(|name| describes_weight(name)) => {
            places.retain(|name, _| !describes_weight(name));
            format!("{index:#}\n")
        }
        _ => text,
    };
    Ok(write_file(&folder.join(INDEX_FILE), written.as_bytes())?)
}
