//! An expert's prototype: the input direction that its delta amplifies most.

use crate::error::{Result, RouteError};
use crate::library_stack::LibraryStack;
use lorakit_adapter::{LowRank, Matrix, SingularVector};
use lorakit_lora::Site;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The projections that share one prototype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrototypeScope {
    /// None: each projection has its own, as in PEFT; q, k and v are routed independently.
    #[default]
    None,
    /// Those of a site, from its stacked B's times the common A: the papers' form, if A is tied.
    Site,
}

impl PrototypeScope {
    /// The projections of a site, grouped by prototype.
    pub fn groups(self, site: &Site) -> Vec<Range<usize>> {
        match self {
            Self::None => (0..site.projections.len()).map(|projection| projection..projection + 1).collect(),
            Self::Site => std::iter::once(0..site.projections.len()).collect(),
        }
    }
}

/// Each expert's prototype for some projections of a site: exact, from r x r problems in f64. None if the expert has no
/// delta there: it has no direction, and must not attract tokens.
///
/// # Errors
/// If an expert's A's differ between the projections.
pub fn prototypes(
    experts: &LibraryStack,
    site: &Site,
    projections: Range<usize>,
) -> Result<Vec<Option<SingularVector>>> {
    let prototype = |expert: usize| {
        let modules = site.projections[projections.clone()].iter().filter_map(|p| experts.module(expert, &p.module));
        let modules: Vec<&LowRank> = modules.collect();
        match modules.as_slice() {
            [] => Ok(None),
            [only] => Ok(only.top_singular_vector()),
            [first, rest @ ..] if rest.iter().all(|module| module.a() == first.a()) => {
                Ok(stacked(&modules)?.top_singular_vector())
            }
            _ => Err(RouteError::UntiedA { site: site.key(), expert: experts.names()[expert].clone() }),
        }
    };
    (0..experts.len()).into_par_iter().map(prototype).collect()
}

/// The one update of projections that share their A: their B's, each times its scale, stacked by rows.
fn stacked(modules: &[&LowRank]) -> Result<LowRank> {
    let scaled =
        |module: &&LowRank| module.b().values().iter().map(|b| b * module.scale() as f32).collect::<Vec<f32>>();
    let b: Vec<f32> = modules.iter().flat_map(scaled).collect();
    let rank = modules[0].rank();
    Ok(LowRank::new(modules[0].a().clone(), Matrix::new(b.len() / rank, rank, b)?, 1.0)?)
}
