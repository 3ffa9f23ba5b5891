//! Routing per token by one vector for each expert: what Arrow, centroid matching and PHATGOOSE have in common.

use crate::gate::Gate;
use crate::inner_products::inner_products;
use crate::mixing::Mixture;
use crate::observer::Observer;
use candle_core::{D, DType, Tensor};
use lorakit_adapter::{Group, Outputs, Patch, Rows};
use std::sync::Arc;

/// What is added to a variance before its root, as in torch's LayerNorm.
const EPSILON: f64 = 1e-5;

/// How a token's scores become weights.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// How many experts a token has at most.
    pub(crate) top_k: usize,
    /// What scores are divided by before the softmax.
    pub(crate) temperature: f32,
    /// What the vectors are multiplied with.
    pub(crate) reading: Reading,
}

/// What of a token, or of a vector, is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// All of it, its length too.
    AsIs,
    /// Its direction: divided by its length.
    Unit,
    /// Less its mean and divided by its deviation, as LayerNorm without gain and bias.
    Standardised,
}

impl Reading {
    /// Reads rows `[n, d]`.
    pub(crate) fn of(self, rows: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::AsIs => Ok(rows.clone()),
            Self::Unit => {
                let length = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
                // A row of zeros has no direction, and stays.
                rows.broadcast_div(&length.maximum(f32::MIN_POSITIVE)?)
            }
            Self::Standardised => {
                let centred = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
                let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
                centred.broadcast_div(&deviation)
            }
        }
    }
}

/// The experts of one site under such a router.
pub(crate) struct PerToken {
    pub(crate) rule: Rule,
    /// The site's index.
    pub(crate) site: usize,
    /// Number of experts of the library.
    pub(crate) experts: usize,
    /// The vectors of all gates, `[candidates of all gates, in]`: one product makes all scores of the site.
    pub(crate) vectors: Tensor,
    pub(crate) gates: Vec<Gate>,
    pub(crate) mixture: Mixture,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl Patch for PerToken {
    fn add(&self, x: &Tensor, rows: &Rows, out: &mut Outputs) -> candle_core::Result<()> {
        if x.dim(0)? == 0 {
            return Ok(());
        }
        // The choice is not differentiated, and is made in f32: in 16 bits near ties flip.
        // From a device the scores come to the CPU, `[tokens, candidates]`: which tokens an expert has is a list.
        let input = self.rule.reading.of(&x.detach().to_dtype(DType::F32)?.contiguous()?)?;
        let scores = inner_products(&input, &self.vectors)?;
        let mut groups: Vec<Group> = Vec::new();
        for gate in &self.gates {
            let chosen = gate.choose(&scores, self.vectors.dim(0)?, self.rule.top_k, self.rule.temperature);
            groups.extend(gate.groups(&chosen, self.experts));
            if let Some(observer) = &self.observer {
                gate.show(&chosen, self.site, rows, observer.as_ref());
            }
        }
        self.mixture.add(x, groups.into(), out)
    }
}
