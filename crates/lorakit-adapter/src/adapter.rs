//! An adapter: one low-rank update per module, and the inner product of whole adapters.

use std::collections::BTreeMap;

use lorakit_format::hash::sha256;
use lorakit_format::mmap::FileBytes;

use crate::base_module::{BaseModule, ModuleKind};
use crate::error::{AdapterError, Result, Within};
use crate::image_encoder::{ImageTensors, is_of_images};
use crate::library::base_identity::BaseIdentity;
use crate::low_rank::{LowRank, cosine};
use crate::matrix::Matrix;
use crate::name_list::quote_names;
use crate::peft::peft_config::{AdapterMetadata, PeftConfig, TaskType};
use crate::peft::target_modules::Targets;
use crate::peft::target_names::TargetNames;
use crate::warning::Warning;

/// A LoRA adapter: low-rank updates of some modules of a base, by the modules' Hugging Face paths, such as
/// `model.layers.0.self_attn.q_proj`.
///
/// As a vector it is all its updates side by side; a module that it lacks counts as zero. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Adapter {
    modules: BTreeMap<String, LowRank>,
    metadata: AdapterMetadata,
    targets: Targets,
    target_names: TargetNames,
    warnings: Vec<Warning>,
    base_tensors: BTreeMap<String, Matrix>,
    /// Whether the head is to get the embedding's update, transposed, over a base that ties them.
    pub(crate) ties_head: bool,
}

impl Adapter {
    /// An adapter with updates of `modules`, as a trainer or a merge makes it. It is written with the whole path of each
    /// module, until [`with_target_names`](Self::with_target_names) or
    /// [`with_target_names_of`](Self::with_target_names_of) finds short names that select the same.
    pub fn new(modules: BTreeMap<String, LowRank>) -> Self {
        Self {
            modules,
            metadata: AdapterMetadata::default(),
            targets: Targets::unspecified(),
            target_names: TargetNames::WholePaths,
            warnings: Vec::new(),
            base_tensors: BTreeMap::new(),
            ties_head: false,
        }
    }

    /// The adapter that `config` describes, with `modules` that were found to fit it.
    pub(crate) fn from_config(modules: BTreeMap<String, LowRank>, config: PeftConfig, warnings: Vec<Warning>) -> Self {
        let target_names = match config.weight_tying {
            // It adapts the head too, which no name selects.
            true => TargetNames::WholePaths,
            false => TargetNames::of_targets(&config.targets),
        };
        Self {
            modules,
            metadata: config.metadata,
            targets: config.targets,
            target_names,
            warnings,
            base_tensors: BTreeMap::new(),
            ties_head: false,
        }
    }

    /// The same adapter, whose file also holds these tensors of the base; see [`Adapter::base_tensors`].
    pub(crate) fn with_base_tensors(mut self, base_tensors: BTreeMap<String, Matrix>) -> Self {
        self.base_tensors.extend(base_tensors);
        self
    }

    /// The same adapter with other modules, which its configuration does not name.
    pub(crate) fn with_modules(self, modules: BTreeMap<String, LowRank>) -> Self {
        Self { modules, targets: Targets::unspecified(), target_names: TargetNames::WholePaths, ..self }
    }

    /// The same adapter with other paths of the same modules, which its configuration does not name.
    pub(crate) fn with_paths(mut self, path: impl Fn(&String) -> String) -> Self {
        self.metadata.embeddings = self.metadata.embeddings.iter().map(&path).collect();
        self.base_tensors = self.base_tensors.into_iter().map(|(name, values)| (path(&name), values)).collect();
        let modules = self.modules.iter().map(|(module, update)| (path(module), update.clone())).collect();
        self.with_modules(modules)
    }

    /// The same adapter without some of its modules and their tensors of the base. It still has to have all modules of a
    /// base that its configuration targets.
    pub(crate) fn without_modules(mut self, is_left_out: impl Fn(&str) -> bool) -> Self {
        self.modules.retain(|path, _| !is_left_out(path));
        self.base_tensors.retain(|name, _| !is_left_out(name));
        self.target_names = TargetNames::WholePaths;
        self
    }

    /// The same adapter with another warning.
    pub(crate) fn with_warning(mut self, warning: Warning) -> Self {
        self.warnings.push(warning);
        self
    }

    /// The same adapter with this warning in place of one of the same subject, if it has one.
    pub(crate) fn with_warning_replaced(mut self, warning: &Warning) -> Self {
        self.warnings.iter_mut().filter(|own| own.subject == warning.subject).for_each(|own| *own = warning.clone());
        self
    }

    /// The same adapter without warnings of this subject.
    pub(crate) fn without_warning(mut self, subject: &str) -> Self {
        self.warnings.retain(|own| own.subject != subject);
        self
    }

    /// The same adapter with the update of another module.
    pub(crate) fn with_module(mut self, path: &str, update: LowRank) -> Self {
        self.modules.insert(path.to_owned(), update);
        self.target_names = TargetNames::WholePaths;
        self
    }

    /// Its tensors that belong to an image encoder.
    pub(crate) fn image_tensors(&self) -> ImageTensors<'_> {
        ImageTensors::among(self.modules().keys().map(|path| (path, 2)))
    }

    /// The same adapter without what it changes in an image encoder, with a warning that says how much that was; as it is
    /// where that is nothing.
    ///
    /// # Errors
    /// If nothing is left.
    pub fn without_image_encoder(self) -> Result<Self> {
        let found = self.image_tensors();
        if found.is_empty() {
            return Ok(self);
        }
        let warning = found.left_out()?;
        Ok(self.without_modules(is_of_images).with_warning(warning))
    }

    /// The same adapter with other metadata for its configuration.
    pub fn with_metadata(self, metadata: AdapterMetadata) -> Self {
        Self { metadata, ..self }
    }

    /// The same adapter, for bases that PEFT wraps for this task.
    pub fn with_task_type(mut self, task_type: TaskType) -> Self {
        self.metadata.task_type = task_type;
        self
    }

    /// The same adapter with other updates of the same modules.
    pub fn with_updates(self, modules: BTreeMap<String, LowRank>) -> Self {
        Self { modules, ..self }
    }

    /// The same adapter, with the name of `base` in its configuration if that names none.
    pub fn with_base_name(mut self, base: Option<&BaseIdentity>) -> Self {
        if let (None, Some(base)) = (&self.metadata.base_model, base) {
            self.metadata.base_model = Some(base.name.clone());
        }
        self
    }

    /// The same adapter, with `name` as the base in its configuration.
    pub fn renamed_base(mut self, name: &str) -> Self {
        self.metadata.base_model = Some(name.to_owned());
        self
    }

    /// The same adapter, written with short `target_modules` if they select exactly its modules among those of `base`.
    pub fn with_target_names(self, base: &[BaseModule]) -> Self {
        let target_names = TargetNames::for_base(self.modules.keys(), base.iter().map(|module| module.path.as_str()));
        Self { target_names, ..self }
    }

    /// The same adapter, written with short `target_modules` if all of `sources`, which have its modules between them, are:
    /// for an adapter that was made of others, over a base that is not at hand.
    pub fn with_target_names_of<'a>(self, sources: impl IntoIterator<Item = &'a Self>) -> Self {
        let sources = sources.into_iter().map(|source| &source.target_names);
        let target_names = TargetNames::together(self.modules.keys(), sources);
        Self { target_names, ..self }
    }

    /// The updates, by module path.
    pub fn modules(&self) -> &BTreeMap<String, LowRank> {
        &self.modules
    }

    /// What its configuration says besides the modules.
    pub fn metadata(&self) -> &AdapterMetadata {
        &self.metadata
    }

    /// Tensors of the base that its file holds besides, by their names there, a vector as one row: PEFT saves an
    /// embedding with its adapter, and loads it over the base's. They must be equal to the base's, which only a base can
    /// tell; they are not written again.
    pub fn base_tensors(&self) -> &BTreeMap<String, Matrix> {
        &self.base_tensors
    }

    /// What reading it warned about.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    pub(crate) fn target_names(&self) -> &TargetNames {
        &self.target_names
    }

    /// Releases the memory that weights in mapped files take; they are read from the file again when next needed.
    pub fn release_pages(&self) {
        self.files().into_iter().flatten().for_each(FileBytes::release_pages);
    }

    /// The SHA-256 of the weights file that was read, even if another has been put in its place since. None of weights that
    /// are not all in one file: some are in memory or in other shards.
    pub fn file_sha256(&self) -> Option<String> {
        let [Some(file)] = self.files()[..] else { return None };
        let hash = sha256(file);
        file.release_pages();
        Some(hash)
    }

    /// The files that the weights are in, each once; None stands for weights in memory.
    fn files(&self) -> Vec<Option<&FileBytes>> {
        let start = |file: &Option<&FileBytes>| file.map(|file| file.as_ptr());
        let mut files: Vec<Option<&FileBytes>> = Vec::new();
        for file in self.modules.values().flat_map(|update| [update.a().file(), update.b().file()]) {
            // There is nearly always one.
            if !files.iter().any(|known| start(known) == start(&file)) {
                files.push(file);
            }
        }
        files
    }

    /// The number of values in all its matrices.
    pub fn parameters(&self) -> usize {
        self.modules.values().map(LowRank::parameters).sum()
    }

    /// The Frobenius inner product of two adapters: the sum of their modules' [`LowRank::dot`], where a module that one
    /// of them lacks counts as 0.
    ///
    /// # Errors
    /// If a module that both have differs in its dimensions; the error names it.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        let mut sum = 0.0;
        for (path, mine) in &self.modules {
            if let Some(theirs) = other.modules.get(path) {
                sum += mine.dot(theirs).within(|| format!("module `{path}`"))?;
            }
        }
        Ok(sum)
    }

    /// The Frobenius norm of all updates together.
    pub fn norm(&self) -> f64 {
        self.modules.values().map(|module| module.norm().powi(2)).sum::<f64>().sqrt()
    }

    /// The cosine of two adapters; 0 where either is zero.
    ///
    /// # Errors
    /// As [`dot`](Self::dot).
    pub fn cosine(&self, other: &Self) -> Result<f64> {
        Ok(cosine(self.dot(other)?, self.norm(), other.norm()))
    }

    /// Checks that the adapter fits a base with the modules `base`: the base has each of its modules with the same
    /// dimensions, and each module of the base that its configuration targets has an update.
    ///
    /// # Errors
    /// If it does not fit; the error lists the modules, with the dimensions found and expected.
    pub fn check_against(&self, base: &[BaseModule]) -> Result<()> {
        let known: BTreeMap<&str, &BaseModule> = base.iter().map(|module| (module.path.as_str(), module)).collect();
        let unknown: Vec<_> = self.modules.keys().filter(|path| !known.contains_key(path.as_str())).collect();
        if !unknown.is_empty() {
            if unknown.iter().all(|path| is_of_images(path)) {
                return Err(self.image_tensors().refusal());
            }
            return Err(AdapterError::AdapterBase(unknown_modules(&unknown, base)));
        }
        for (path, update) in &self.modules {
            let BaseModule { input, output, kind, .. } = known[path.as_str()];
            let embedding = self.metadata.embeddings.contains(path);
            if embedding != (*kind == ModuleKind::Embedding) {
                return Err(AdapterError::AdapterBase(format!(
                    "module `{path}` is {} in the base and {} in the adapter; was it made for another base?",
                    if embedding { "a linear module" } else { "an embedding" },
                    if embedding { "an embedding" } else { "a linear module" },
                )));
            }
            if (update.input(), update.output()) != (*input, *output) {
                return Err(AdapterError::AdapterBase(format!(
                    "module `{path}`: the base has input {input} and output {output}, the adapter input {} and output \
                     {}; was it made for another base?",
                    update.input(),
                    update.output()
                )));
            }
        }
        self.check_targets(base)
    }

    /// Checks that each module of the base that the configuration targets has an update.
    fn check_targets(&self, base: &[BaseModule]) -> Result<()> {
        if !self.targets.is_specified() {
            return Ok(());
        }
        let mut missing = Vec::new();
        for module in base {
            if !self.modules.contains_key(&module.path) && self.targets.select(module)? {
                missing.push(&module.path);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(AdapterError::AdapterBase(format!(
            "target_modules selects modules of the base for which the adapter has no tensors: {}; correct target_modules \
             in its adapter_config.json",
            quote_names(&missing)
        )))
    }
}

/// Why modules that the base does not have are refused.
fn unknown_modules(unknown: &[&String], base: &[BaseModule]) -> String {
    let embedding = base.iter().find(|module| module.kind == ModuleKind::Embedding);
    // transformers' T5 hands the embedding `shared` to its encoder and its decoder, where PEFT adapts each by itself.
    let of_one_stack = |path: &&&String| ["encoder.embed_tokens", "decoder.embed_tokens"].contains(&path.as_str());
    let found: Vec<_> = unknown.iter().filter(of_one_stack).copied().collect();
    let has_encoder = base.iter().any(|module| module.path.starts_with("encoder."));
    match embedding {
        Some(BaseModule { path, .. }) if has_encoder && !found.is_empty() => format!(
            "the adapter changes the embedding of the encoder or of the decoder alone: {}; lorakit has one embedding for \
             both, `{path}`, and cannot apply a change to one of them; train without embed_tokens in target_modules",
            quote_names(&found)
        ),
        _ => format!(
            "the adapter has modules that the base does not have: {}; was it made for another base?",
            quote_names(unknown)
        ),
    }
}
