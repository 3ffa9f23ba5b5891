//! A library opened over a base: its experts at the base's sites.

use crate::error::{FitError, Result, WithContext as _};
use crate::record_file::record_beside;
use lorakit_adapter::{Adapter, BaseModule, ExpertHash, ExpertRecord, Library, OpaqueRecord, TaskRecord};
use lorakit_model::Base;
use lorakit_route::{Expert, LibraryStack};
use rayon::prelude::*;
use std::path::Path;

/// A library whose experts are put together at the sites of a base.
#[derive(Debug)]
pub struct OpenLibrary {
    /// The library.
    pub library: Library,
    /// The experts.
    pub experts: LibraryStack,
    /// What is recorded of each, in the order of their names, but no losses: they are most of a record, and of a large
    /// library more than all else that is kept of its experts.
    pub records: Vec<Option<ExpertRecord>>,
}

impl OpenLibrary {
    /// Opens a library and its experts, once for all routers: those of the names in `chosen`, or all where it is
    /// empty.
    ///
    /// # Errors
    /// Where the library or an expert belongs to another base, a chosen expert does not exist, or there is no expert.
    pub fn open(root: &Path, base: &Base, chosen: &[String]) -> Result<Self> {
        let library = Library::open(root)?;
        if let Some(own) = library.base() {
            own.ensure_serves(base.identity()).with_context(|| format!("the library {}", root.display()))?;
        }
        let mut names = library.expert_names()?;
        // Its error suggests similar names.
        chosen.iter().try_for_each(|name| library.expert_folder(name).map(drop))?;
        names.retain(|name| chosen.is_empty() || chosen.contains(name));
        if names.is_empty() {
            return Err(FitError::EmptyLibrary(root.to_owned()));
        }
        let modules = base.adaptable_modules();
        let read = |name: &String| read_expert(&library, name, base, &modules);
        // In parallel: of a thousand experts, configurations and headers take longer than weights. A few at a time, so that no
        // thread is left with many at the end.
        let read: Vec<Result<_>> = names.par_iter().with_max_len(4).map(read).collect();
        let (experts, records): (Vec<_>, Vec<_>) = read.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let experts = LibraryStack::new(experts, &base.adaptable_sites(), base.device())?;
        Ok(Self { library, experts, records })
    }

    /// The names of the experts, each with what is recorded of it.
    pub fn named_records(&self) -> impl Iterator<Item = (&str, Option<&ExpertRecord>)> {
        self.experts.names().iter().map(String::as_str).zip(self.records.iter().map(Option::as_ref))
    }

    /// The hashes of the experts' weights as they were read.
    ///
    /// # Errors
    /// As [`OpenLibrary::weights_sha256`].
    pub fn expert_hashes(&self) -> Result<Vec<ExpertHash>> {
        let of = |expert: &Expert| {
            Ok(ExpertHash { name: expert.name.clone(), sha256: weights_sha256(&self.library, expert)? })
        };
        self.experts.experts().iter().map(of).collect()
    }

    /// The SHA-256 of the weights of the expert `name` as they were read: another process may have replaced it since.
    ///
    /// # Errors
    /// Where there is no such expert, or its weights cannot be read.
    pub fn weights_sha256(&self, name: &str) -> Result<String> {
        weights_sha256(&self.library, &self.experts.experts()[self.experts.index(name)?])
    }

    /// The tasks that these experts were trained on, directly or through the experts that they were made from.
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

/// The names of all experts of a library, in order, each with the names of the tasks that it records. No weights are read.
///
/// # Errors
/// If the library's folder or a record cannot be read.
pub fn recorded_tasks(library: &Library) -> Result<Vec<(String, Vec<String>)>> {
    let names = library.expert_names()?.into_par_iter();
    let read: Vec<Result<_>> = names.map(|name| Ok((name.clone(), library.task_names(&name)?))).collect();
    read.into_iter().collect()
}

/// The SHA-256 of the weights file of an expert of a library: of the mapped one, or of the one in the library where the
/// weights are in memory.
pub(crate) fn weights_sha256(library: &Library, expert: &Expert) -> Result<String> {
    match expert.adapter.file_sha256() {
        Some(hash) => Ok(hash),
        None => Ok(library.weights_sha256(&expert.name)?),
    }
}

/// An expert of a library, with the paths of a base of these modules, and its record.
fn read_expert(
    library: &Library,
    name: &str,
    base: &Base,
    modules: &[BaseModule],
) -> Result<(Expert, Option<ExpertRecord>)> {
    let mut record = library.record(name)?;
    record.iter_mut().for_each(|record| record.losses = OpaqueRecord::default());
    let place = || format!("the expert `{name}` of {}", library.root().display());
    ensure_base(record.as_ref(), base).with_context(place)?;
    let tasks = record.iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect();
    let adapter = library.adapter(name)?.with_text_model_of(modules);
    Ok((Expert { name: name.to_owned(), adapter, tasks }, record))
}

/// The same adapter over `base`, whose head follows an adapted embedding where its configuration says so.
///
/// # Errors
/// As [`Adapter::with_tied_head`].
pub fn with_tied_head(adapter: Adapter, base: &Base) -> Result<Adapter> {
    let config = base.config();
    Ok(adapter.with_tied_head(config.descriptor.embedding, config.descriptor.lm_head, config.tied)?)
}

/// Opens one adapter folder as the only expert. What its file holds of the base itself is for the caller to compare with it:
/// [`Adapter::base_tensors`].
///
/// # Errors
/// Where the adapter cannot be read, or belongs to another base.
pub fn open_adapter(folder: &Path, base: &Base) -> Result<LibraryStack> {
    let place = || folder.display().to_string();
    let adapter =
        Adapter::read_with_base_biases(folder)?.with_modules_of(&base.adaptable_modules()).with_context(place)?;
    let adapter = with_tied_head(adapter, base).with_context(place)?;
    ensure_base(record_beside(folder)?.as_ref(), base).with_context(place)?;
    adapter.check_against(&base.adaptable_modules()).with_context(place)?;
    Ok(LibraryStack::new([Expert::new("adapter", adapter)], &base.adaptable_sites(), base.device())?)
}

/// Checks, before a library is recorded as one of `base`, that everything in it belongs to that base. For a library that
/// records its base, comparing the record is enough.
///
/// # Errors
/// Where the library, an expert or a model belongs to another base.
pub fn ensure_same_base(library: &Library, base: &Base) -> Result<()> {
    let place = library.root().display();
    if let Some(own) = library.recorded_base()? {
        return own.ensure_same(base.identity()).with_context(|| format!("the library {place}"));
    }
    let modules = base.adaptable_modules();
    for name in library.expert_names()? {
        let fits = || -> Result<()> {
            ensure_base(library.record(&name)?.as_ref(), base)?;
            Ok(library.adapter(&name)?.check_against(&modules)?)
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

/// Compares fingerprints, where the record has one: shapes alone do not tell bases apart.
fn ensure_base(record: Option<&ExpertRecord>, base: &Base) -> Result<()> {
    let given = base.identity();
    match record {
        Some(record) if !given.is_base_of(record) => Err(FitError::OtherBase {
            trained: record.base_fingerprint.clone().unwrap_or_default(),
            base: given.name.clone(),
            fingerprint: given.fingerprint.clone(),
        }),
        _ => Ok(()),
    }
}
