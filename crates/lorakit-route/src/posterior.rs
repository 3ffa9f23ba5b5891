//! The experts' weights for a prompt, from how far its pattern is from those of their tasks: the decision of
//! [`crate::Evidence`].

use crate::by_prompt::{ByPrompt, Survey};
use crate::error::Result;
use crate::pattern::{Discriminant, pattern};
use crate::response::{Responses, Watch};
use crate::tp::highest_softmax;
use candle_core::Tensor;
use lorakit_adapter::{Patches, Rows};
use std::sync::Arc;

/// The quantile of ascending values, between neighbours by proportion.
pub(crate) fn quantile(sorted: &[f32], share: f64) -> f32 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract() as f32,
        _ => f32::INFINITY,
    }
}

/// Decides by the responses to a prompt.
pub(crate) struct Posterior {
    pub(crate) responses: Responses,
    pub(crate) usual: Arc<Usual>,
}

/// What is usual, and how a decision is made of it.
pub(crate) struct Usual {
    pub(crate) top_k: usize,
    pub(crate) temperature: f32,
    /// Whether the mean serves what no expert fits.
    pub(crate) uniform: bool,
    pub(crate) experts: usize,
    /// Means and deviations of the responses at each touched site, `[2, experts]`.
    pub(crate) sites: Vec<Vec<f32>>,
    pub(crate) discriminant: Discriminant,
    pub(crate) experts_of_tasks: Vec<usize>,
    /// The squared distance from which on no expert fits, and up to which they have their full weight.
    pub(crate) far: f32,
    pub(crate) near: f32,
}

impl ByPrompt for Posterior {
    fn survey(&self) -> Box<dyn Survey> {
        Box::new(Weighing { watch: self.responses.watch(), usual: self.usual.clone() })
    }
}

struct Weighing {
    watch: Watch,
    usual: Arc<Usual>,
}

impl Survey for Weighing {
    fn patches(&self) -> Patches {
        self.watch.patches()
    }

    fn weights(&self, rows: &Rows, _: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let (responses, usual) = (self.watch.responses(), &self.usual);
        let weigh = |row| {
            let pattern = pattern(row, usual.experts, &responses, &usual.sites)?;
            Ok(usual.weigh(&usual.discriminant.distances(&pattern)))
        };
        (0..rows.len()).map(weigh).collect()
    }
}

impl Usual {
    /// The experts' weights at these squared distances from the tasks.
    fn weigh(&self, distances: &[f32]) -> Arc<[f32]> {
        let distances: Vec<f32> = distances.iter().map(|distance| distance.max(f32::MIN_POSITIVE)).collect();
        let nearest = distances.iter().copied().fold(f32::INFINITY, f32::min);
        let confidence = self.confidence(nearest);
        let mut shares = vec![0f32; self.experts];
        for (&expert, distance) in self.experts_of_tasks.iter().zip(&distances) {
            shares[expert] += (nearest / distance).powf(1.0 / self.temperature);
        }
        let scores: Vec<f32> = shares.iter().map(|share| share.ln()).collect();
        let rest = if self.uniform { (1.0 - confidence) / self.experts as f32 } else { 0.0 };
        let weights = highest_softmax(&scores, self.top_k, 1.0);
        weights.iter().map(|weight| confidence * weight + rest).collect()
    }

    /// How much of a row the experts are given whose nearest task is so far.
    fn confidence(&self, nearest: f32) -> f32 {
        match nearest <= self.near {
            true => 1.0,
            false => ((self.far - nearest) / (self.far - self.near)).clamp(0.0, 1.0),
        }
    }
}
