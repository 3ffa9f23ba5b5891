//! An adapter added to a base's weights: as a Hugging Face model folder, or in memory to be compared.

use crate::base::model_files;
use crate::base::resolved_base::ResolvedBase;
use crate::context::Context;
use crate::interrupt::Interrupted;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{Adapter, LowRank};
use lorakit_model::{Base, Element, Options, Rounding};
use lorakit_route::merge::{Orientation, add_to_weight};
use std::collections::BTreeSet;
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
    let rounding = checkpoint.rewrite(folder, &names(adapter), &mut |name, values| {
        ensure!(!stop.load(Ordering::Relaxed), Interrupted("nothing was written".to_owned()));
        change(name, values)
    })?;
    Base::open(folder, &Options::default()).context("the merged base cannot be opened again")?;
    Ok(rounding)
}

/// The base with `adapter` added to its weights, in memory. Weights that the adapter does not change stay in their
/// files.
pub fn in_memory(place: &ResolvedBase, adapter: &Adapter, kept: Kept, options: &Options) -> Result<Base> {
    let keep = options.dtype.and_then(element);
    let checkpoint = place.checkpoint()?.changed(&names(adapter), keep, kept == Kept::Exact, &mut change(adapter))?;
    Base::of("merged", place.config()?, &checkpoint, options)
}

/// The narrowest type in which [`in_memory`] keeps what `adapter` changes.
pub fn kept_in(place: &ResolvedBase, adapter: &Adapter, options: &Options) -> Result<Element> {
    match options.dtype.and_then(element) {
        Some(element) => Ok(element),
        None => place.checkpoint()?.narrowest(&names(adapter)),
    }
}

/// The type that weights are narrowed to for `--dtype`.
fn element(dtype: candle_core::DType) -> Option<Element> {
    [Element::F16, Element::BF16].into_iter().find(|element| element.dtype() == dtype)
}

/// The tensors that an adapter changes.
fn names(adapter: &Adapter) -> BTreeSet<String> {
    adapter.modules().keys().map(|module| tensor(module)).collect()
}

fn tensor(module: &str) -> String {
    format!("{module}.weight")
}

/// Adds a module's update to its weight, which torch's linear layers keep as `[out, in]`.
fn change(adapter: &Adapter) -> impl FnMut(&str, &mut [f32]) -> Result<()> + '_ {
    |name, values| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let update: &LowRank =
            adapter.modules().get(module).with_context(|| format!("the adapter has no module `{module}`"))?;
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
