//! The experts of a library over an open base.

use crate::base_source::Located;
use crate::merge_record;
use anyhow::{Context as _, Result, bail, ensure};
use lorakit_adapter::{Adapter, ExpertRecord, Library, MODEL_RECORD_FILE, TaskRecord};
use lorakit_model::Base;
use lorakit_route::{Expert, Experts};
use std::path::Path;

/// A library whose experts are stacked at the sites of a base.
pub struct Opened {
    /// The library.
    pub library: Library,
    /// The experts.
    pub experts: Experts,
    /// What is recorded of each, in the order of their names.
    pub records: Vec<Option<ExpertRecord>>,
}

impl Opened {
    /// The tasks that these experts have seen, directly or through what they were made of.
    pub fn seen(&self, experts: impl IntoIterator<Item = usize>) -> Vec<TaskRecord> {
        let mut seen = Vec::new();
        for record in experts.into_iter().flat_map(|expert| &self.records[expert]) {
            for task in record.tasks.iter().chain(&record.seen) {
                if !seen.contains(task) {
                    seen.push(task.clone());
                }
            }
        }
        seen
    }
}

/// Opens a library and stacks all its experts, once for all routers.
pub fn open(root: &Path, base: &Base) -> Result<Opened> {
    open_some(root, base, &[])
}

/// The same with the experts of these names alone; all where there are none.
pub fn open_some(root: &Path, base: &Base, chosen: &[String]) -> Result<Opened> {
    let library = Library::open(root)?;
    if let Some(own) = library.base() {
        own.ensure_same(base.identity()).with_context(|| format!("the library {}", root.display()))?;
    }
    let mut names = library.expert_names()?;
    if let Some(unknown) = chosen.iter().find(|name| !names.contains(name)) {
        bail!("{}: no expert has the name {unknown}; there are {}", root.display(), names.join(", "));
    }
    names.retain(|name| chosen.is_empty() || chosen.contains(name));
    ensure!(
        !names.is_empty(),
        "{}: the library has no experts; `lorakit train-experts` and `lorakit library add` make some",
        root.display()
    );
    let records = names.iter().map(|name| library.record(name)).collect::<Result<Vec<_>>>()?;
    let expert = |(name, record): (&String, &Option<ExpertRecord>)| -> Result<Expert> {
        ensure_base(record.as_ref(), base).with_context(|| format!("the expert `{name}` of {}", root.display()))?;
        let tasks = record.iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect();
        Ok(Expert { name: name.clone(), adapter: library.adapter(name)?, tasks })
    };
    let experts = names.iter().zip(&records).map(expert).collect::<Result<Vec<_>>>()?;
    let experts = Experts::new(experts, base.sites(), base.device())?;
    Ok(Opened { library, experts, records })
}

/// One adapter folder as the only expert.
pub fn single(folder: &Path, base: &Base) -> Result<Experts> {
    let place = || folder.display().to_string();
    let adapter = Adapter::read(folder)?;
    ensure_base(record_beside(folder)?.as_ref(), base).with_context(place)?;
    adapter.check_against(&base.modules()).with_context(place)?;
    Ok(Experts::new([Expert::new("adapter", adapter)], base.sites(), base.device())?)
}

/// The record that lorakit keeps in an expert's folder; None for a folder of PEFT's own.
pub fn record_beside(folder: &Path) -> Result<Option<ExpertRecord>> {
    read_record(&folder.join("expert.json"))
}

/// What lorakit recorded in the folder of a model that it trained or merged; None for any other base.
pub fn record_of_model(place: &Located) -> Result<Option<ExpertRecord>> {
    match place {
        Located::Folder { folder, .. } => match merge_record::read_base(folder)? {
            Some(merged) => Ok(Some(ExpertRecord { seen: merged.seen, ..ExpertRecord::default() })),
            None => read_record(&folder.join(MODEL_RECORD_FILE)),
        },
        Located::Pico => Ok(None),
    }
}

fn read_record(path: &Path) -> Result<Option<ExpertRecord>> {
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_str(&lorakit_format::read_text(path)?)
        .map(Some)
        .with_context(|| format!("{}: not as lorakit writes it", path.display()))
}

/// Verifies, before a library takes `base` for its own, that all that is in it already is of that base. A library that
/// records its base has had this done.
pub fn ensure_all_of(library: &Library, base: &Base) -> Result<()> {
    let place = library.root().display();
    if let Some(own) = library.recorded_base()? {
        return own.ensure_same(base.identity()).with_context(|| format!("the library {place}"));
    }
    let modules = base.modules();
    for name in library.expert_names()? {
        let fits = || {
            ensure_base(library.record(&name)?.as_ref(), base)?;
            library.adapter(&name)?.check_against(&modules)
        };
        fits().with_context(|| {
            format!("{place}: its expert `{name}` is not of the base `{}`, and a library has one", base.identity().name)
        })?;
    }
    for name in library.model_names()? {
        ensure_base(library.model_record(&name)?.as_ref(), base)
            .with_context(|| format!("{place}: its model `{name}`"))?;
    }
    Ok(())
}

/// An adapter that lorakit trained knows its base by more than shapes.
fn ensure_base(record: Option<&ExpertRecord>, base: &Base) -> Result<()> {
    let (Some(trained), given) = (record.and_then(|r| r.base_fingerprint.as_ref()), base.identity()) else {
        return Ok(());
    };
    ensure!(
        *trained == given.fingerprint,
        "trained on a base with the fingerprint {trained}, and `{}` has {}; give the base that it was trained on",
        given.name,
        given.fingerprint
    );
    Ok(())
}
