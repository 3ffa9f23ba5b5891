//! One module of a merge: the experts' updates, the merged update, and the loop over modules.

use crate::error::{Result, RouteError};
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_report::{Merged, ModuleReport, Retained};
use crate::ordered_results::ordered_results;
use lorakit_adapter::{Adapter, AdapterError, AdapterMetadata, LowRank, Matrix};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Memory limit for what a merge keeps of the modules that it merges in parallel, in bytes. A module that needs more is merged
/// alone.
const PARALLEL_BYTES: usize = 1 << 30;

/// A module with the updates of the experts that change it.
pub(super) struct Module<'a> {
    pub path: &'a str,
    pub input: usize,
    pub output: usize,
    /// The experts that have the module, in the given order. An expert that lacks it counts as zero.
    pub parts: Vec<ModuleExpert<'a>>,
    /// The sum of all experts' weights, including those that lack the module.
    pub total_weight: f64,
}

/// One expert's part of a module.
#[derive(Clone, Copy)]
pub(super) struct ModuleExpert<'a> {
    pub expert: usize,
    pub name: &'a str,
    pub weight: f64,
    pub update: &'a LowRank,
}

/// The merged update of a module, and how much of the untruncated one it retains.
pub(super) struct MergedModule {
    pub update: LowRank,
    pub retained: Retained,
}

/// What a merge keeps in memory for a module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Footprint {
    /// Matrices of the experts' ranks.
    LowRank,
    /// Matrices as large as the module's weight.
    Dense,
}

impl Footprint {
    /// About how many bytes it keeps of `module`.
    fn bytes(self, module: &Module) -> usize {
        // Both factors of all experts together, their orthonormal bases and what becomes of them.
        const FACTORS: usize = 5;
        let values = match self {
            Self::Dense => module.input * module.output,
            Self::LowRank => {
                let rank = module.rank_sum();
                FACTORS * rank * (module.input + module.output) + rank * rank
            }
        };
        size_of::<f64>() * values
    }
}

impl<'a> Module<'a> {
    pub(super) fn of(path: &'a str, experts: &'a [Expert], coefficients: &Coefficients) -> Result<Self> {
        let weights = coefficients.at(path);
        let have = |(expert, (source, weight)): (usize, (&'a Expert, &f64))| {
            let update = source.adapter.modules().get(path)?;
            Some(ModuleExpert { expert, name: &source.name, weight: *weight, update })
        };
        let parts: Vec<ModuleExpert> = experts.iter().zip(weights).enumerate().filter_map(have).collect();
        let shape = |part: &ModuleExpert| (part.update.input(), part.update.output());
        let Some((input, output)) = parts.first().map(shape) else { return Err(RouteError::NoModules) };
        if let Some(other) = parts.iter().find(|part| shape(part) != (input, output)) {
            return Err(RouteError::Shapes {
                module: path.to_owned(),
                first: (parts[0].name.to_owned(), (input, output)),
                second: (other.name.to_owned(), shape(other)),
            });
        }
        Ok(Self { path, input, output, parts, total_weight: weights.iter().sum() })
    }

    /// The experts that a weighted sum has: those whose weight and scale are not zero.
    pub(super) fn summands(&self) -> Vec<&ModuleExpert<'a>> {
        self.parts.iter().filter(|part| part.weight * part.update.scale() != 0.0).collect()
    }

    /// The module with its summands alone.
    pub(super) fn of_summands(&self) -> Self {
        Self { parts: self.summands().into_iter().copied().collect(), ..*self }
    }

    /// The sum of the experts' ranks.
    pub(super) fn rank_sum(&self) -> usize {
        self.parts.iter().map(|part| part.update.rank()).sum()
    }

    /// The largest of the experts' ranks.
    pub(super) fn largest_rank(&self) -> usize {
        self.parts.iter().map(|part| part.update.rank()).max().unwrap_or(1)
    }

    /// The rank of all experts, for the merge `method` of A and B separately; `instead` takes any ranks.
    pub(super) fn equal_rank(&self, method: &'static str, instead: &'static str) -> Result<usize> {
        let rank = |part: &ModuleExpert| (part.name.to_owned(), part.update.rank());
        let first = rank(&self.parts[0]);
        match self.parts.iter().find(|part| part.update.rank() != first.1) {
            None => Ok(first.1),
            Some(other) => Err(RouteError::MergedRanks {
                method,
                module: self.path.to_owned(),
                first: Box::new(first),
                second: Box::new(rank(other)),
                instead,
            }),
        }
    }

    /// The update `B A` from row-major values.
    pub(super) fn update(&self, rank: usize, a: Vec<f32>, b: Vec<f32>) -> Result<LowRank> {
        let pair = || LowRank::new(Matrix::new(rank, self.input, a)?, Matrix::new(self.output, rank, b)?, 1.0);
        pair().map_err(|source| self.invalid(source))
    }

    /// The same update with another B, from row-major values.
    pub(super) fn with_b(&self, update: &LowRank, b: Vec<f32>) -> Result<LowRank> {
        let pair = || LowRank::new(update.a().clone(), Matrix::new(self.output, update.rank(), b)?, update.scale());
        pair().map_err(|source| self.invalid(source))
    }

    fn invalid(&self, source: AdapterError) -> RouteError {
        RouteError::MergedMatrix { module: self.path.to_owned(), source: Box::new(source) }
    }

    /// An update of zero: PEFT has no rank 0.
    pub(super) fn zero(&self) -> Result<LowRank> {
        self.update(1, vec![0.0; self.input], vec![0.0; self.output])
    }

    /// An error of the linear algebra in this module.
    pub(super) fn arithmetic(&self, problem: &'static str) -> RouteError {
        RouteError::Arithmetic { module: self.path.to_owned(), problem }
    }
}

/// Merges all modules in parallel and collects the results.
///
/// Each module is merged by a single thread, so that the result does not depend on the number of threads.
pub(super) fn each_module(
    experts: &[Expert],
    coefficients: &Coefficients,
    footprint: Footprint,
    make: impl Fn(&Module) -> Result<MergedModule> + Sync,
) -> Result<Merged> {
    let metadata = check(experts, coefficients)?;
    let modules =
        paths(experts).into_iter().map(|path| Module::of(path, experts, coefficients)).collect::<Result<Vec<_>>>()?;
    let mut merged = Vec::with_capacity(modules.len());
    for group in groups(&modules, footprint) {
        merged.extend(ordered_results(group.par_iter().map(&make))?);
    }
    let report = modules.iter().zip(&merged).map(|(module, made)| ModuleReport {
        module: module.path.to_owned(),
        rank: made.update.rank(),
        retained: made.retained.share,
        error: made.retained.error,
    });
    let report = report.collect();
    let updates = modules.iter().zip(merged).map(|(module, made)| (module.path.to_owned(), made.update)).collect();
    let adapter = Adapter::new(updates).with_metadata(metadata);
    Ok(Merged { adapter: adapter.with_target_names_of(experts.iter().map(|expert| &expert.adapter)), report })
}

/// All modules that any expert changes, sorted.
pub(super) fn paths(experts: &[Expert]) -> BTreeSet<&str> {
    experts.iter().flat_map(|expert| expert.adapter.modules().keys().map(String::as_str)).collect()
}

/// Groups of modules that are merged in parallel.
fn groups<'a, 'b>(modules: &'b [Module<'a>], footprint: Footprint) -> Vec<&'b [Module<'a>]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, module) in modules.iter().enumerate() {
        let needed = footprint.bytes(module);
        if at > start && bytes + needed > PARALLEL_BYTES {
            groups.push(&modules[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += needed;
    }
    groups.push(&modules[start..]);
    groups
}

/// Refuses experts that cannot be merged; returns the metadata of the result.
fn check(experts: &[Expert], coefficients: &Coefficients) -> Result<AdapterMetadata> {
    let Some(first) = experts.first() else { return Err(RouteError::NoExperts) };
    let mut names = BTreeSet::new();
    if let Some(twin) = experts.iter().find(|expert| !names.insert(&expert.name)) {
        return Err(RouteError::RepeatedExpert(twin.name.clone()));
    }
    coefficients.check(experts)?;
    if paths(experts).is_empty() {
        return Err(RouteError::NoModules);
    }
    // A merge has scales of its own. Whatever fan_in_fan_out says, PEFT takes it from the base's modules.
    let mut metadata = AdapterMetadata { rslora: false, ..first.adapter.metadata().clone() };
    for other in &experts[1..] {
        let theirs = other.adapter.metadata();
        // If the experts' bases differ, none of them is recorded.
        if (&theirs.base_model, &theirs.revision) != (&metadata.base_model, &metadata.revision) {
            (metadata.base_model, metadata.revision) = (None, None);
        }
        metadata.embeddings.extend(theirs.embeddings.iter().cloned());
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn modules_of_many_experts_are_not_all_merged_at_once() {
        let zeros = |rows, columns| Matrix::new(rows, columns, vec![0.0; rows * columns]).unwrap();
        let update = LowRank::new(zeros(64, 1024), zeros(1024, 64), 1.0).unwrap();
        let module = |experts: usize| {
            let part = |expert| ModuleExpert { expert, name: "e", weight: 1.0, update: &update };
            let parts = (0..experts).map(part).collect();
            Module { path: "m", input: 1024, output: 1024, parts, total_weight: experts as f64 }
        };
        let sizes = |experts: &[usize], footprint| {
            let modules: Vec<Module> = experts.iter().map(|experts| module(*experts)).collect();
            groups(&modules, footprint).iter().map(|group| group.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[2; 9], Footprint::LowRank), [9]);
        assert_eq!(sizes(&[300, 1, 1, 300, 300], Footprint::LowRank), [1, 2, 1, 1]);
        assert_eq!(sizes(&[300; 200], Footprint::Dense), [128, 72]);
    }
}
