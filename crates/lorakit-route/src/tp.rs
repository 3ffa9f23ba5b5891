//! The task predictor: a row goes to the experts of the tasks that its prompt looks like
//! (TP of Ostapenko et al. 2024, <https://arxiv.org/abs/2405.11157>, section 4.2).
//!
//! The paper trains a classifier over a T5 encoder; here it is a multinomial logistic regression over what the base itself
//! makes of the prompt, so that no other model is needed. With `h` the mean over the prompt's tokens of the last layer's
//! output and `f = (h - centre) / spread` feature by feature, `p(e | row) = softmax(W f + b)_e`. The `top_k` likeliest
//! experts serve the row at the weights `softmax(log p / temperature)` among them.
//!
//! Learned: `centre` and `spread`, `[1, hidden]`, `weights`, `[experts, hidden]`, and `biases`, `[1, experts]`.

use crate::by_prompt::{ByPrompt, Survey};
use crate::error::{Result, RouteError};
use crate::experts::Experts;
use crate::learned::{Learned, Lesson};
use crate::mixing::Mixing;
use crate::settings::{AtMost, Settings};
use candle_core::{DType, Tensor};
use lorakit_lora::{Patches, SequenceBatch};
use std::fmt;
use std::sync::Arc;

/// The router `tp`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tp {
    /// How many experts a row has at most.
    pub top_k: AtMost,
    /// What the log-probabilities of the chosen are divided by.
    pub temperature: f32,
    /// How many rows of each task are learned from.
    pub rows: AtMost,
    /// How the chosen experts' deltas become one.
    pub mixing: Mixing,
}

impl Default for Tp {
    fn default() -> Self {
        Self { top_k: AtMost(1), temperature: 1.0, rows: AtMost(100), mixing: Mixing::Outputs }
    }
}

impl fmt::Display for Tp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { top_k, temperature, rows, mixing } = self;
        write!(f, "top_k={top_k},temperature={temperature},rows={rows},mixing={mixing}")
    }
}

impl Tp {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let tp = Self {
            top_k: settings.take("top_k", default.top_k),
            temperature: settings.temperature(default.temperature),
            rows: settings.take("rows", default.rows),
            mixing: settings.take("mixing", default.mixing),
        };
        settings.finish().map(|()| tp)
    }

    /// Rows of the experts' own tasks.
    pub fn lesson(&self) -> Lesson {
        Lesson::Experts { rows: self.rows.0 }
    }

    /// What decides, from what was learned.
    ///
    /// # Errors
    /// Where it was learned for another library.
    pub fn rule(&self, experts: &Experts, learned: &Learned) -> Result<Arc<dyn ByPrompt>> {
        let hidden = learned.matrices().get("centre").map_or(0, |centre| centre.cols());
        let values =
            |name, rows, columns| Ok::<_, RouteError>(learned.matrix(name, (rows, columns))?.values().into_owned());
        Ok(Arc::new(Classifier {
            top_k: self.top_k.0.min(experts.len()),
            temperature: self.temperature,
            centre: values("centre", 1, hidden)?,
            spread: values("spread", 1, hidden)?,
            weights: values("weights", experts.len(), hidden)?,
            biases: values("biases", 1, experts.len())?,
        }))
    }
}

#[derive(Clone)]
struct Classifier {
    top_k: usize,
    temperature: f32,
    centre: Vec<f32>,
    spread: Vec<f32>,
    weights: Vec<f32>,
    biases: Vec<f32>,
}

impl ByPrompt for Classifier {
    fn survey(&self) -> Box<dyn Survey> {
        Box::new(self.clone())
    }
}

impl Survey for Classifier {
    fn patches(&self) -> Patches {
        Patches::none()
    }

    fn weights(&self, rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let width = self.centre.len();
        if width == 0 || hidden.dim(1)? != width {
            return Err(RouteError::Adapter(format!(
                "the classifier reads {width} features, and the base has {}",
                hidden.dim(1)?
            )));
        }
        let features = pooled(rows, hidden)?;
        let decide = |features: &[f32]| {
            let standard = features.iter().zip(&self.centre).zip(&self.spread).map(|((h, c), s)| (h - c) / s);
            let standard: Vec<f32> = standard.collect();
            let logit =
                |(weights, bias): (&[f32], &f32)| bias + weights.iter().zip(&standard).map(|(w, f)| w * f).sum::<f32>();
            let logits: Vec<f32> = self.weights.chunks_exact(width).zip(&self.biases).map(logit).collect();
            highest_softmax(&logits, self.top_k, self.temperature)
        };
        Ok(features.chunks_exact(width).map(decide).collect())
    }
}

/// The mean over each row's tokens of `hidden`, `[tokens, hidden]`, as `[rows, hidden]`.
///
/// # Errors
/// Where the rows have other tokens.
pub fn pooled(rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<f32>> {
    let (tokens, width) = hidden.dims2()?;
    if tokens != rows.tokens() {
        return Err(RouteError::OtherRows);
    }
    let values = hidden.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut pooled = vec![0.0; rows.len() * width];
    for (mean, row) in pooled.chunks_exact_mut(width).zip(rows.iter()) {
        for token in values[row.start * width..(row.start + row.len) * width].chunks_exact(width) {
            mean.iter_mut().zip(token).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= row.len.max(1) as f32);
    }
    Ok(pooled)
}

/// A softmax over the `top_k` highest scores, the first of equals, and zero for the others.
pub(crate) fn highest_softmax(scores: &[f32], top_k: usize, temperature: f32) -> Arc<[f32]> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(top_k);
    let highest = order.first().map_or(0.0, |first| scores[*first]);
    let mut weights = vec![0.0; scores.len()];
    let total: f32 = order.iter().map(|expert| ((scores[*expert] - highest) / temperature).exp()).sum();
    for expert in order {
        weights[expert] = ((scores[expert] - highest) / temperature).exp() / total;
    }
    weights.into()
}
