//! The experts' weights for a prompt, from the distances of its pattern from those of their tasks: the decision of
//! [`crate::Evidence`].

use crate::error::Result;
use crate::prompt::evidence::lda::{LinearDiscriminant, pattern};
use crate::prompt::evidence::response::{ResponsePass, ResponseProbe};
use crate::prompt::prompt_router::{PromptPass, PromptRouter};
use crate::prompt::top_k_softmax::top_k_softmax;
use candle_core::Tensor;
use lorakit_lora::{Patches, SequenceBatch};
use std::sync::Arc;

/// The quantile of ascending values, linearly interpolated.
pub(crate) fn quantile(sorted: &[f32], share: f64) -> f32 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract() as f32,
        _ => f32::INFINITY,
    }
}

/// Gives weights by the responses to a prompt.
pub(crate) struct Posterior {
    pub(crate) responses: ResponseProbe,
    pub(crate) reference: Arc<Reference>,
}

/// The distribution of reference prompts, and how weights are computed from it.
pub(crate) struct Reference {
    pub(crate) top_k: usize,
    pub(crate) temperature: f32,
    /// Whether the mean of the experts is the fallback.
    pub(crate) uniform: bool,
    pub(crate) experts: usize,
    /// Means and deviations of the responses at each touched site, `[2, experts]`.
    pub(crate) sites: Vec<Vec<f32>>,
    pub(crate) discriminant: LinearDiscriminant,
    pub(crate) experts_of_tasks: Vec<usize>,
    /// The squared distance from which on no expert fits.
    pub(crate) far: f32,
    /// The squared distance up to which the experts have their full weight.
    pub(crate) near: f32,
}

impl PromptRouter for Posterior {
    fn start(&self) -> Box<dyn PromptPass> {
        Box::new(PosteriorPass { pass: self.responses.start(), reference: self.reference.clone() })
    }
}

struct PosteriorPass {
    pass: ResponsePass,
    reference: Arc<Reference>,
}

impl PromptPass for PosteriorPass {
    fn patches(&self) -> Patches {
        self.pass.patches()
    }

    fn weights(&self, rows: &SequenceBatch, _: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let (responses, reference) = (self.pass.responses(), &self.reference);
        let weigh = |row| {
            let pattern = pattern(row, reference.experts, &responses, &reference.sites)?;
            Ok(reference.weigh(&reference.discriminant.distances(&pattern)))
        };
        (0..rows.len()).map(weigh).collect()
    }
}

impl Reference {
    /// The experts' weights at these squared distances from the tasks.
    fn weigh(&self, distances: &[f32]) -> Arc<[f32]> {
        let nearest = distances.iter().copied().fold(f32::INFINITY, f32::min).max(f32::MIN_POSITIVE);
        let confidence = self.confidence(nearest);
        let rest = if self.uniform { (1.0 - confidence) / self.experts as f32 } else { 0.0 };
        // NaN and infinite distances give no confidence and no weights.
        if confidence == 0.0 {
            return vec![rest; self.experts].into();
        }
        let mut shares = vec![0f32; self.experts];
        for (&expert, distance) in self.experts_of_tasks.iter().zip(distances).filter(|(_, d)| d.is_finite()) {
            shares[expert] += (nearest / distance.max(nearest)).powf(1.0 / self.temperature);
        }
        let scores: Vec<f32> = shares.iter().map(|share| share.ln()).collect();
        let weights = top_k_softmax(&scores, self.top_k, 1.0);
        weights.iter().map(|weight| confidence * weight + rest).collect()
    }

    /// The share of a row that the experts get if the nearest task is at this squared distance.
    fn confidence(&self, nearest: f32) -> f32 {
        match nearest {
            nearest if !nearest.is_finite() => 0.0,
            nearest if nearest <= self.near => 1.0,
            nearest => ((self.far - nearest) / (self.far - self.near)).clamp(0.0, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three experts; the second has two tasks.
    fn reference(uniform: bool, top_k: usize) -> Reference {
        Reference {
            top_k,
            temperature: 0.5,
            uniform,
            experts: 3,
            sites: Vec::new(),
            discriminant: LinearDiscriminant { whitening: Vec::new(), means: Vec::new(), width: 0 },
            experts_of_tasks: vec![0, 1, 1, 2],
            near: 1.0,
            far: 3.0,
        }
    }

    fn assert_close(found: &[f32], expected: [f32; 3]) {
        let close =
            found.len() == 3 && found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6);
        assert!(close, "{found:?}, expected {expected:?}");
    }

    #[test]
    fn weights_follow_the_formula() {
        // At this temperature a task counts by the inverse of its distance to the fourth power.
        let sum = 1.0 + (0.25 + 1.0 / 16.0) + 1.0 / 4.0;
        let whole = [1.0 / sum, (0.25 + 1.0 / 16.0) / sum, 0.25 / sum];
        assert_close(&reference(false, 3).weigh(&[0.5, 1.0, 2.0, 1.0]), whole);
        // Midway between near and far the confidence is one half, and the fallback has the other half.
        assert_close(&reference(false, 3).weigh(&[2.0, 4.0, 8.0, 4.0]), whole.map(|weight| 0.5 * weight));
        assert_close(&reference(true, 3).weigh(&[2.0, 4.0, 8.0, 4.0]), whole.map(|weight| 0.5 * weight + 1.0 / 6.0));
        assert_close(&reference(false, 1).weigh(&[1.0, 0.5, 1.0, 2.0]), [0.0, 1.0, 0.0]);
        assert_close(&reference(false, 3).weigh(&[0.0, 0.0, 1.0, 1.0]), [0.5, 0.5, 0.0]);
    }

    #[test]
    fn prompts_beyond_all_tasks_or_nan_get_the_fallback() {
        for distances in [[3.0, 4.0, 5.0, 6.0], [f32::INFINITY; 4], [f32::NAN; 4]] {
            assert_close(&reference(false, 3).weigh(&distances), [0.0; 3]);
            assert_close(&reference(true, 3).weigh(&distances), [1.0 / 3.0; 3]);
        }
    }

    #[test]
    fn quantiles_are_interpolated() {
        let sorted = [1.0, 2.0, 4.0];
        let found = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| quantile(&sorted, share));
        assert_eq!(found, [1.0, 1.5, 2.0, 3.0, 4.0]);
    }
}
