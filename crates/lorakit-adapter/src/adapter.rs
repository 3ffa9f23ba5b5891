//! An adapter: one low-rank update per module, and the geometry of the whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::low_rank::{LowRank, cosine};
use crate::name_list::quote_names;
use crate::peft::peft_config::{AdapterMetadata, PeftConfig};
use crate::peft::target_modules::Targets;
use crate::peft::target_names::TargetNames;
use crate::warning::Warning;
use lorakit_format::mmap::MappedFile;

/// A LoRA adapter: the updates of some modules of a base, by the modules' Hugging Face paths, such
/// as `model.layers.0.self_attn.q_proj`.
///
/// As a vector it is all its updates side by side; a module that it lacks counts as zero. Cloning
/// is cheap where the weights lie in a mapped file or are shared.
#[derive(Clone, Debug)]
pub struct Adapter {
    modules: BTreeMap<String, LowRank>,
    metadata: AdapterMetadata,
    targets: Targets,
    target_names: TargetNames,
    warnings: Vec<Warning>,
}

/// A linear module of a base, which an update may be added to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseModule {
    /// The module's Hugging Face path.
    pub path: String,
    /// The width of its input.
    pub input: usize,
    /// The width of its output.
    pub output: usize,
}

impl Adapter {
    /// An adapter of `modules`, as a trainer or a merge makes it.
    pub fn new(modules: BTreeMap<String, LowRank>) -> Self {
        let target_names = TargetNames::guessed(modules.keys());
        Self {
            modules,
            metadata: AdapterMetadata::default(),
            targets: Targets::unstated(),
            target_names,
            warnings: Vec::new(),
        }
    }

    /// The adapter that `config` describes, whose tensors were found to fit it.
    pub(crate) fn described(modules: BTreeMap<String, LowRank>, config: PeftConfig, warnings: Vec<Warning>) -> Self {
        let target_names = TargetNames::stated(&config.targets);
        Self { modules, metadata: config.metadata, targets: config.targets, target_names, warnings }
    }

    /// The same adapter with other facts for its configuration.
    pub fn with_metadata(self, metadata: AdapterMetadata) -> Self {
        Self { metadata, ..self }
    }

    /// The same adapter, written with short `target_modules` where they select exactly its modules
    /// in a base that has `base`. Without this, what is not known of the base is guessed from the
    /// adapter's own paths.
    pub fn with_target_names(self, base: &[BaseModule]) -> Self {
        let target_names = TargetNames::for_base(self.modules.keys(), base.iter().map(|module| module.path.as_str()));
        Self { target_names, ..self }
    }

    /// The updates, by module path.
    pub fn modules(&self) -> &BTreeMap<String, LowRank> {
        &self.modules
    }

    /// What its configuration says beside the modules.
    pub fn metadata(&self) -> &AdapterMetadata {
        &self.metadata
    }

    /// What was accepted leniently when it was read.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    pub(crate) fn target_names(&self) -> &TargetNames {
        &self.target_names
    }

    /// Lets the memory go that weights take which lie in a mapped file and have been looked at; they are read again
    /// when they are looked at again.
    pub fn release_pages(&self) {
        let mut files: Vec<&Arc<MappedFile>> = Vec::new();
        for file in self.modules.values().flat_map(|update| [update.a().file(), update.b().file()]).flatten() {
            // Nearly always there is one.
            if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
                files.push(file);
            }
        }
        files.into_iter().for_each(|file| file.release_pages());
    }

    /// The number of values in all its matrices.
    pub fn parameters(&self) -> usize {
        self.modules.values().map(LowRank::parameters).sum()
    }

    /// The Frobenius product of two adapters: the sum of their modules' [`LowRank::dot`], where a
    /// module that one of them lacks counts 0.
    ///
    /// # Errors
    /// If a module that both have differs in its widths; the error names it.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        let mut sum = 0.0;
        for (path, mine) in &self.modules {
            if let Some(theirs) = other.modules.get(path) {
                sum += mine.dot(theirs).with_context(|| format!("module `{path}`"))?;
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

    /// Verifies that the adapter fits a base with the modules `base`: each of its modules is there
    /// with the same widths, and each module of the base that its configuration targets has an
    /// update.
    ///
    /// # Errors
    /// If it does not fit; the error lists the modules, with the widths found and expected.
    pub fn check_against(&self, base: &[BaseModule]) -> Result<()> {
        let widths: BTreeMap<&str, &BaseModule> = base.iter().map(|module| (module.path.as_str(), module)).collect();
        let unknown: Vec<_> = self.modules.keys().filter(|path| !widths.contains_key(path.as_str())).collect();
        ensure!(
            unknown.is_empty(),
            "the adapter has modules that the base does not have: {}; was it made for another \
             base?",
            quote_names(&unknown)
        );
        for (path, update) in &self.modules {
            let module = widths[path.as_str()];
            if (update.input(), update.output()) != (module.input, module.output) {
                bail!(
                    "module `{path}`: the base has input {} and output {}, the adapter input {} \
                     and output {}; was it made for another base?",
                    module.input,
                    module.output,
                    update.input(),
                    update.output()
                );
            }
        }
        self.check_targets_of(base)
    }

    fn check_targets_of(&self, base: &[BaseModule]) -> Result<()> {
        if !self.targets.is_specified() {
            return Ok(());
        }
        let mut missing = Vec::new();
        for module in base {
            if !self.modules.contains_key(&module.path) && self.targets.matches(&module.path)? {
                missing.push(&module.path);
            }
        }
        ensure!(
            missing.is_empty(),
            "target_modules selects modules of the base for which the adapter has no tensors: {}; \
             correct target_modules in its adapter_config.json",
            quote_names(&missing)
        );
        Ok(())
    }
}
