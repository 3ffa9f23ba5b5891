//! Which modules the experts adapt, in what shapes, and which of them share one A.
//!
//! A is often tied across the projections that read one input (q, k and v). PEFT stores it with each projection, but it is
//! one parameter: Phi-2 at rank 4 has 1,966,080 of them, not 2,621,440 (arXiv:2405.11157). Modules count as tied if they
//! have the same parent and every expert has equal A's for them.

use std::collections::BTreeMap;

use lorakit_adapter::{Adapter, LowRank};
use rayon::prelude::*;

use crate::comparison_space::ComparisonSpace;
use crate::error::{ClusterError, Result};
use crate::expert_set::ExpertSet;

/// The widths of one module, the same in all experts of a base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModuleWidth {
    pub input: usize,
    pub output: usize,
}

/// One module of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    width: ModuleWidth,
    rank: usize,
    /// The first module of the same parent with an equal A, or the module itself.
    tied_to: String,
}

/// Modules that share one A in every expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TiedModules {
    /// Module paths and their widths; the A of the first is read.
    pub modules: Vec<(String, ModuleWidth)>,
    /// The rank in each expert, or 0 if it lacks these modules.
    pub ranks: Vec<usize>,
}

impl TiedModules {
    /// The path of the first module.
    pub fn first(&self) -> &str {
        &self.modules[0].0
    }

    /// The input width, the same for all of them.
    pub fn input(&self) -> usize {
        self.modules[0].1.input
    }

    /// The sum of the output widths.
    pub fn output(&self) -> usize {
        self.modules.iter().map(|(_, width)| width.output).sum()
    }
}

/// The modules of a set of experts, in the order of their paths.
#[derive(Clone, Debug)]
pub(crate) struct ModuleLayout {
    pub groups: Vec<TiedModules>,
}

impl ModuleLayout {
    /// Opens every expert once and compares their shapes.
    pub fn of(experts: &ExpertSet) -> Result<Self> {
        let shapes: Vec<BTreeMap<String, Shape>> = (0..experts.len())
            .into_par_iter()
            .map(|index| experts.with_adapter(index, shapes))
            .collect::<Result<_>>()?;
        let widths = common_widths(experts.names(), &shapes)?;
        let mut groups: BTreeMap<String, TiedModules> = BTreeMap::new();
        let mut leaders: BTreeMap<Vec<Option<&str>>, String> = BTreeMap::new();
        for (module, width) in widths {
            // Two modules share one A in every expert if and only if both are tied to the same module in each.
            let key = shapes.iter().map(|expert| expert.get(module).map(|shape| shape.tied_to.as_str())).collect();
            let leader = leaders.entry(key).or_insert_with(|| module.to_owned());
            let ranks = || shapes.iter().map(|expert| expert.get(module).map_or(0, |shape| shape.rank)).collect();
            let tied =
                groups.entry(leader.clone()).or_insert_with(|| TiedModules { modules: Vec::new(), ranks: ranks() });
            tied.modules.push((module.to_owned(), width));
        }
        Ok(Self { groups: groups.into_values().collect() })
    }

    /// Checks that flattened parameters have the same coordinates: every expert has every module, with the same rank.
    pub fn ensure_aligned(&self, names: &[String], space: ComparisonSpace) -> Result<()> {
        for tied in &self.groups {
            let rank = tied.ranks[0];
            let Some(other) = tied.ranks.iter().position(|found| *found != rank) else { continue };
            return Err(ClusterError::NotAligned {
                space,
                first: names[0].clone(),
                second: names[other].clone(),
                module: tied.first().to_owned(),
                difference: match (rank, tied.ranks[other]) {
                    (0, _) => "is adapted only by the second".to_owned(),
                    (_, 0) => "is adapted only by the first".to_owned(),
                    (first, second) => format!("has rank {first} in the first and {second} in the second"),
                },
            });
        }
        Ok(())
    }
}

/// The shapes of one expert's modules, and which of them have the A of an earlier one.
fn shapes(adapter: &Adapter) -> BTreeMap<String, Shape> {
    let mut shapes = BTreeMap::new();
    // For each parent, the modules whose A was not seen before.
    let mut distinct: BTreeMap<&str, Vec<(&str, &LowRank)>> = BTreeMap::new();
    for (module, update) in adapter.modules() {
        let seen = distinct.entry(parent(module)).or_default();
        let tied_to = match seen.iter().find(|(_, earlier)| earlier.a() == update.a()) {
            Some((earlier, _)) => *earlier,
            None => {
                seen.push((module, update));
                module
            }
        };
        let width = ModuleWidth { input: update.input(), output: update.output() };
        shapes.insert(module.clone(), Shape { width, rank: update.rank(), tied_to: tied_to.to_owned() });
    }
    shapes
}

/// The path without its last part: `model.layers.0.self_attn` for `model.layers.0.self_attn.q_proj`.
fn parent(module: &str) -> &str {
    module.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// Every module of any expert with its widths, which must be the same in all experts.
fn common_widths<'a>(
    names: &[String],
    shapes: &'a [BTreeMap<String, Shape>],
) -> Result<BTreeMap<&'a str, ModuleWidth>> {
    let mut common: BTreeMap<&str, (usize, ModuleWidth)> = BTreeMap::new();
    for (index, expert) in shapes.iter().enumerate() {
        for (module, shape) in expert {
            let (first, width) = *common.entry(module).or_insert((index, shape.width));
            if width != shape.width {
                return Err(ClusterError::DifferentBase {
                    module: module.clone(),
                    first: names[first].clone(),
                    second: names[index].clone(),
                    first_shape: [width.output, width.input],
                    second_shape: [shape.width.output, shape.width.input],
                });
            }
        }
    }
    Ok(common.into_iter().map(|(module, (_, width))| (module, width)).collect())
}
