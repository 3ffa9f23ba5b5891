//! General knowledge subtraction: what some general experts know is taken out of all others before they are routed
//! (GenKnowSub, <https://arxiv.org/abs/2505.10939>; PEFT's `use_gks`).
//!
//! With `n` general experts, each other expert's module becomes, by [`Gks::Factors`] (PEFT's arithmetic),
//! `s (B - mean B_g) (A - mean A_g)`, which has cross terms and needs equal ranks; by [`Gks::Deltas`],
//! `s B A - mean s_g B_g A_g`, exactly, at the rank of all together. The general experts themselves are no candidates.

use crate::error::{Result, RouteError, adapter};
use crate::experts::{Expert, Experts};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is subtracted from what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gks {
    /// A from A and B from B, as PEFT does.
    #[default]
    Factors,
    /// The delta from the delta.
    Deltas,
}

impl FromStr for Gks {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "factors" => Ok(Self::Factors),
            "deltas" => Ok(Self::Deltas),
            _ => Err("factors or deltas"),
        }
    }
}

impl fmt::Display for Gks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Factors => "factors",
            Self::Deltas => "deltas",
        })
    }
}

/// The names of general experts, with a plus between them; none where it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct General(pub Vec<String>);

impl FromStr for General {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::default()),
            _ if text.split('+').any(str::is_empty) => Err("names of experts, as in NAME+NAME, or none"),
            _ => Ok(Self(text.split('+').map(str::to_owned).collect())),
        }
    }
}

impl fmt::Display for General {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.0.join("+")) }
    }
}

/// The library with the general experts' knowledge subtracted from the others. Names and their order stay; the general
/// experts have no modules any more.
///
/// # Errors
/// Where there is no expert of a name; by factors, where ranks differ at a module.
pub fn subtracted(experts: &Experts, general: &General, gks: Gks) -> Result<Experts> {
    let indices = general.0.iter().map(|name| experts.index(name)).collect::<Result<Vec<_>>>()?;
    let device = experts.stacks().next().map_or(candle_core::Device::Cpu, |(_, _, stack)| stack.a().device().clone());
    let less = |(index, expert): (usize, &Expert)| -> Result<Expert> {
        let mut modules = BTreeMap::new();
        if !indices.contains(&index) {
            for (module, own) in expert.adapter.modules() {
                let general = indices.iter().filter_map(|&g| Some((g, experts.module(g, module)?)));
                let general: Vec<(usize, &LowRank)> = general.collect();
                let share = 1.0 / indices.len() as f64;
                let made = match gks {
                    Gks::Deltas => by_deltas(own, &general, share).map_err(adapter)?,
                    Gks::Factors => {
                        if let Some((g, other)) = general.iter().find(|(_, other)| other.rank() != own.rank()) {
                            return Err(RouteError::GksRanks {
                                module: module.clone(),
                                first: (expert.name.clone(), own.rank()),
                                second: (experts.names()[*g].clone(), other.rank()),
                            });
                        }
                        by_factors(own, &general, share).map_err(adapter)?
                    }
                };
                modules.insert(module.clone(), made);
            }
        }
        Ok(Expert { adapter: Adapter::new(modules), ..expert.clone() })
    };
    let changed = experts.experts().iter().enumerate().map(less).collect::<Result<Vec<_>>>()?;
    Experts::new(changed, experts.sites(), &device)
}

/// `s (B - share * sum B_g) (A - share * sum A_g)`.
fn by_factors(own: &LowRank, general: &[(usize, &LowRank)], share: f64) -> anyhow::Result<LowRank> {
    let less = |matrix: fn(&LowRank) -> &Matrix| {
        let mut values = matrix(own).values().into_owned();
        for (_, general) in general {
            values.iter_mut().zip(&*matrix(general).values()).for_each(|(own, g)| *own -= share as f32 * g);
        }
        Matrix::new(matrix(own).rows(), matrix(own).cols(), values)
    };
    Ok(LowRank::new(less(LowRank::a)?, less(LowRank::b)?, own.scale())?)
}

/// `s B A - share * sum s_g B_g A_g`, with the A's by rows and the B's by columns.
fn by_deltas(own: &LowRank, general: &[(usize, &LowRank)], share: f64) -> anyhow::Result<LowRank> {
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
