//! General knowledge subtraction: what some general experts know is subtracted from all others before they are routed
//! (GenKnowSub, <https://arxiv.org/abs/2505.10939>; PEFT's `use_gks`).
//!
//! With `n` general experts, each other expert's module becomes, by [`SubtractionSpace::Factors`] (PEFT's arithmetic),
//! `s (B - mean B_g) (A - mean A_g)`, which has cross terms and needs equal ranks; by [`SubtractionSpace::Deltas`],
//! `s B A - mean s_g B_g A_g`, exactly, at the sum of the ranks. The general experts themselves are no candidates.

use crate::error::{Result, RouteError};
use crate::library_stack::{Expert, LibraryStack};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is subtracted from what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubtractionSpace {
    /// A from A and B from B, as PEFT does.
    #[default]
    Factors,
    /// The delta from the delta.
    Deltas,
}

/// The names of general experts, joined by `+`, which a name may contain too; `none` if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GeneralExperts(Option<String>);

impl GeneralExperts {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Their indices: of the expert that has the whole text as its name, or of those between the `+`.
    ///
    /// # Errors
    /// If there is no expert of a name.
    fn indices(&self, experts: &LibraryStack) -> Result<Vec<usize>> {
        let Some(text) = &self.0 else { return Ok(Vec::new()) };
        match experts.index(text) {
            Ok(whole) => Ok(vec![whole]),
            Err(_) => text.split('+').map(|name| experts.index(name)).collect(),
        }
    }
}

impl FromStr for GeneralExperts {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::default()),
            "" => Err("names of experts, as in NAME+NAME, or none"),
            _ => Ok(Self(Some(text.to_owned()))),
        }
    }
}

impl TryFrom<String> for GeneralExperts {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<GeneralExperts> for String {
    fn from(general: GeneralExperts) -> Self {
        general.to_string()
    }
}

impl fmt::Display for GeneralExperts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("none"))
    }
}

/// The library with the general experts' knowledge subtracted from the others. Names and their order stay; the general
/// experts have no modules any more.
///
/// # Errors
/// If there is no expert of a name, or no other expert; by factors, if ranks differ at a module.
pub fn subtracted(experts: &LibraryStack, general: &GeneralExperts, space: SubtractionSpace) -> Result<LibraryStack> {
    let indices = general.indices(experts)?;
    if (0..experts.len()).all(|index| indices.contains(&index)) {
        return Err(RouteError::AllGeneral(general.to_string()));
    }
    let device = experts.stacks().next().map_or(candle_core::Device::Cpu, |(_, _, stack)| stack.device().clone());
    let remaining = |(index, expert): (usize, &Expert)| -> Result<Expert> {
        let mut modules = BTreeMap::new();
        if !indices.contains(&index) {
            for (module, own) in expert.adapter.modules() {
                let general = indices.iter().filter_map(|&g| Some((g, experts.module(g, module)?)));
                let general: Vec<(usize, &LowRank)> = general.collect();
                let share = 1.0 / indices.len() as f64;
                let difference = match space {
                    SubtractionSpace::Deltas => by_deltas(own, &general, share)?,
                    SubtractionSpace::Factors => {
                        if let Some((g, other)) = general.iter().find(|(_, other)| other.rank() != own.rank()) {
                            return Err(RouteError::SubtractionRanks {
                                module: module.clone(),
                                first: (expert.name.clone(), own.rank()),
                                second: (experts.names()[*g].clone(), other.rank()),
                            });
                        }
                        by_factors(own, &general, share)?
                    }
                };
                modules.insert(module.clone(), difference);
            }
        }
        Ok(Expert { adapter: Adapter::new(modules), ..expert.clone() })
    };
    let changed = experts.experts().iter().enumerate().map(remaining).collect::<Result<Vec<_>>>()?;
    LibraryStack::new(changed, experts.sites(), &device)
}

/// `s (B - share * sum B_g) (A - share * sum A_g)`.
fn by_factors(own: &LowRank, general: &[(usize, &LowRank)], share: f64) -> Result<LowRank> {
    let difference = |matrix: fn(&LowRank) -> &Matrix| {
        let mut values = matrix(own).values().into_owned();
        for (_, general) in general {
            values.iter_mut().zip(&*matrix(general).values()).for_each(|(own, g)| *own -= share as f32 * g);
        }
        Matrix::new(matrix(own).rows(), matrix(own).cols(), values)
    };
    Ok(LowRank::new(difference(LowRank::a)?, difference(LowRank::b)?, own.scale())?)
}

/// `s B A - share * sum s_g B_g A_g`, with the A's by rows and the B's by columns.
fn by_deltas(own: &LowRank, general: &[(usize, &LowRank)], share: f64) -> Result<LowRank> {
    let parts: Vec<(f64, &LowRank)> = std::iter::once((own.scale(), own))
        .chain(general.iter().map(|(_, general)| (-share * general.scale(), *general)))
        .collect();
    let rank = parts.iter().map(|(_, part)| part.rank()).sum();
    let a: Vec<f32> = parts.iter().flat_map(|(_, part)| part.a().values().into_owned()).collect();
    let mut b = Vec::with_capacity(own.output() * rank);
    let columns: Vec<_> = parts.iter().map(|(scale, part)| (*scale as f32, part.rank(), part.b().values())).collect();
    for row in 0..own.output() {
        for (scale, rank, values) in &columns {
            b.extend(values[row * rank..(row + 1) * rank].iter().map(|value| scale * value));
        }
    }
    Ok(LowRank::new(Matrix::new(rank, own.input(), a)?, Matrix::new(own.output(), rank, b)?, 1.0)?)
}
