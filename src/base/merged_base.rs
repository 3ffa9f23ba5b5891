//! An adapter added to a base's weights: as a Hugging Face model folder, or in memory to be compared.

use crate::base::model_files;
use crate::base::resolved_base::ResolvedBase;
use crate::context::Context;
use crate::interrupt::Interrupted;
use anyhow::{Context as _, Result};
use lorakit_adapter::{Adapter, LowRank};
use lorakit_model::{Base, BaseOptions, ModelError, Rounding, StorageDtype};
use lorakit_route::merge::{Orientation, add_to_weight};
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::Ordering;

/// The index of weights that are split over files. Names, shapes and types stay, so it stays true.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// How the values of changed weights are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// As a file would keep them.
    Rounded,
    /// In f32, so that nothing is rounded off.
    Exact,
}

/// Writes the base with `adapter` added to its weights into `folder`, which exists: weights in the base's own types,
/// configuration and tokenizer as they are. What was written is opened once, so that what cannot be is not left.
pub fn write(place: &ResolvedBase, adapter: &Adapter, folder: &Path, context: &Context) -> Result<Rounding> {
    model_files::write(place, folder)?;
    if let ResolvedBase::Folder { folder: source, .. } = place {
        copy_index(source, folder)?;
    }
    let checkpoint = place.checkpoint()?;
    // A model half written is large, so it is not left behind: Ctrl-C is obeyed between two weights.
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
    Base::open(folder, &BaseOptions::default()).context("the merged base cannot be opened again")?;
    Ok(rounding)
}

/// The base with `adapter` added to its weights, in memory. Weights that the adapter does not change stay in their
/// files.
pub fn in_memory(place: &ResolvedBase, adapter: &Adapter, kept: Kept, options: &BaseOptions) -> Result<Base> {
    let keep = options.dtype.and_then(element);
    let checkpoint =
        place.checkpoint()?.with_edits(&names(adapter), keep, kept == Kept::Exact, &mut change(adapter))?;
    Ok(Base::from_checkpoint("merged", place.config()?, &checkpoint, options)?)
}

/// The narrowest type in which [`in_memory`] keeps what `adapter` changes.
pub fn kept_in(place: &ResolvedBase, adapter: &Adapter, options: &BaseOptions) -> Result<StorageDtype> {
    match options.dtype.and_then(element) {
        Some(element) => Ok(element),
        None => Ok(place.checkpoint()?.narrowest_dtype(&names(adapter))?),
    }
}

/// The type that weights are narrowed to for `--dtype`.
fn element(dtype: candle_core::DType) -> Option<StorageDtype> {
    [StorageDtype::F16, StorageDtype::BF16].into_iter().find(|element| element.dtype() == dtype)
}

/// The tensors that an adapter changes.
fn names(adapter: &Adapter) -> BTreeSet<String> {
    adapter.modules().keys().map(|module| tensor(module)).collect()
}

fn tensor(module: &str) -> String {
    format!("{module}.weight")
}

/// Adds a module's update to its weight, which torch's linear layers keep as `[out, in]`.
fn change(adapter: &Adapter) -> impl FnMut(&str, &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> + '_ {
    |name, values| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let update: &LowRank =
            adapter.modules().get(module).ok_or_else(|| format!("the adapter has no module `{module}`"))?;
        Ok(add_to_weight(module, update, values, Orientation::OutIn)?)
    }
}

/// Copies the index of weights that are split over files, where there is one. One file of weights goes before an index
/// that lies beside it, here as when the base is opened.
fn copy_index(source: &Path, folder: &Path) -> Result<()> {
    let from = source.join(INDEX_FILE);
    if from.is_file() && !source.join("model.safetensors").exists() {
        std::fs::copy(&from, folder.join(INDEX_FILE))
            .with_context(|| format!("{}: cannot be copied", from.display()))?;
    }
    Ok(())
}
