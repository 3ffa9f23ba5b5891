//! An expert's prototype: the input direction that its delta amplifies most.

use crate::error::{Result, RouteError};
use crate::library_stack::LibraryStack;
use crate::ordered_results::ordered_results;
use lorakit_adapter::{LowRank, Matrix};
use lorakit_lora::Site;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The projections that share one prototype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrototypeScope {
    /// Each projection has its own, as in PEFT; q, k and v are routed independently.
    #[default]
    #[serde(rename = "none")]
    Projection,
    /// Those of a site, from its stacked B's times the common A: the papers' form, if A is tied.
    Site,
}

impl PrototypeScope {
    /// The projections of a site, grouped by prototype.
    pub fn groups(self, site: &Site) -> Vec<Range<usize>> {
        match self {
            Self::Projection => (0..site.projections.len()).map(|projection| projection..projection + 1).collect(),
            Self::Site => std::iter::once(0..site.projections.len()).collect(),
        }
    }
}

/// The prototypes of a site.
#[derive(Debug)]
pub struct Prototypes {
    /// Unit vectors by rows, `[candidates of all groups, in]`: group by group, and in each by candidate.
    pub vectors: Vec<f32>,
    /// The experts that have one, of each group of projections, in the order of their names.
    pub candidates: Vec<Vec<u32>>,
}

/// Each expert's prototype for each group of projections of a site: exact, from r x r problems in f64. An expert that has
/// no delta there has none: it has no direction, and must not attract tokens.
///
/// # Errors
/// If an expert's A's differ between the projections of a group.
pub fn prototypes(experts: &LibraryStack, site: &Site, groups: &[Range<usize>]) -> Result<Prototypes> {
    let with_modules = |(group, projections): (usize, &Range<usize>)| {
        let updates = |expert: usize| (expert, modules(experts, expert, site, projections));
        let updates = (0..experts.len()).map(updates).filter(|(_, modules)| !modules.is_empty());
        updates.map(move |(expert, modules)| (group, expert, modules)).collect::<Vec<_>>()
    };
    let rows: Vec<_> = groups.iter().enumerate().flat_map(with_modules).collect();
    // Each prototype is written to its row. Of a large library they are hundreds of megabytes, which copies would double.
    let mut vectors = vec![0.0; rows.len() * site.input];
    let write = |((_, expert, modules), row): (&(usize, usize, Vec<&LowRank>), &mut [f32])| match modules.as_slice() {
        [only] => Ok(only.write_top_singular_vector(row).is_some()),
        [first, rest @ ..] if rest.iter().all(|module| module.a() == first.a()) => {
            Ok(stacked(modules)?.write_top_singular_vector(row).is_some())
        }
        _ => Err(RouteError::UntiedA { site: site.key(), expert: experts.names()[*expert].clone() }),
    };
    let written = ordered_results(rows.par_iter().zip(vectors.par_chunks_exact_mut(site.input)).map(write))?;
    let mut candidates = vec![Vec::new(); groups.len()];
    for ((group, expert, _), _) in rows.iter().zip(&written).filter(|(_, written)| **written) {
        candidates[*group].push(*expert as u32);
    }
    keep_rows(&mut vectors, site.input, &written);
    Ok(Prototypes { vectors, candidates })
}

/// An expert's updates of some projections of a site.
fn modules<'a>(experts: &'a LibraryStack, expert: usize, site: &Site, projections: &Range<usize>) -> Vec<&'a LowRank> {
    site.projections[projections.clone()].iter().filter_map(|p| experts.module(expert, &p.module)).collect()
}

/// Removes the rows that are not `kept`, of `width` values each.
fn keep_rows(values: &mut Vec<f32>, width: usize, kept: &[bool]) {
    if kept.iter().all(|kept| *kept) {
        return;
    }
    let mut rows = 0;
    for (row, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
        values.copy_within(row * width..(row + 1) * width, rows * width);
        rows += 1;
    }
    values.truncate(rows * width);
    values.shrink_to_fit();
}

/// The one update of projections that share their A: their B's, each times its scale, stacked by rows.
fn stacked(modules: &[&LowRank]) -> Result<LowRank> {
    let scaled =
        |module: &&LowRank| module.b().values().iter().map(|b| b * module.scale() as f32).collect::<Vec<f32>>();
    let b: Vec<f32> = modules.iter().flat_map(scaled).collect();
    let rank = modules[0].rank();
    Ok(LowRank::new(modules[0].a().clone(), Matrix::new(b.len() / rank, rank, b)?, 1.0)?)
}
