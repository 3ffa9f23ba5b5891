//! One expert, verbatim: on all tokens, or each row its own.

use crate::always::Always;
use crate::error::{Result, RouteError};
use crate::experts::Experts;
use crate::mixing::{Mixing, Mixture};
use crate::patches;
use crate::stack::Choice;
use candle_core::{Tensor, bail};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch, TokenGroup, TokenSelection};
use std::sync::Arc;

/// The router `expert:NAME`: one expert's adapter on every token, as it was trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verbatim {
    /// The expert's name.
    pub name: String,
}

impl Verbatim {
    pub(crate) fn parse(name: Option<&str>) -> Result<Self> {
        match name {
            Some(name) if !name.is_empty() => Ok(Self { name: name.to_owned() }),
            _ => Err(RouteError::Setting {
                router: "expert".to_owned(),
                problem: "no name is given".to_owned(),
                known: "the name of one expert, as in expert:boolq".to_owned(),
            }),
        }
    }

    /// The patches of the expert of that name.
    ///
    /// # Errors
    /// Where the library has none.
    pub fn patches(&self, experts: &Experts) -> Result<Patches> {
        one(experts, experts.index(&self.name)?)
    }
}

/// The patches of one expert, by its index, on all tokens.
pub fn one(experts: &Experts, expert: usize) -> Result<Patches> {
    patches(experts, |_, _, stack| Ok(stack.only(expert)?.map(|grouped| Arc::new(Always(grouped)) as Arc<dyn Patch>)))
}

/// Patches that give each row the expert that [`lorakit_lora::Sequence::expert`] names, and none where it names none.
pub fn by_row(experts: &Experts) -> Result<Patches> {
    patches(experts, |_, site, stack| {
        // Chosen for each projection alone, since those of one expert stand apart in the stack unless A is tied.
        let mixture = Mixture::new(Mixing::Outputs, Choice::Projection, experts, site, stack)?;
        Ok(Some(Arc::new(ByRow { mixture, experts: experts.len(), projections: site.projections.len() })))
    })
}

struct ByRow {
    mixture: Mixture,
    experts: usize,
    projections: usize,
}

impl Patch for ByRow {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let mut groups = Vec::new();
        for row in rows.iter() {
            let Some(expert) = row.expert else { continue };
            if expert >= self.experts {
                bail!("a row belongs to expert {expert} of {}", self.experts);
            }
            groups.extend((0..self.projections).map(|projection| TokenGroup {
                expert: projection * self.experts + expert,
                tokens: TokenSelection::Contiguous(row.tokens()),
                weights: None,
            }));
        }
        self.mixture.add(x, groups.into(), out)
    }
}
