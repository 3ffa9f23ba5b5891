//! The task predictor: a row goes to the experts of the tasks that its prompt looks like
//! (TP of Ostapenko et al. 2024, <https://arxiv.org/abs/2405.11157>, section 4.2).
//!
//! The paper trains a classifier over a T5 encoder; here it is a multinomial logistic regression over the base's own
//! hidden state of the prompt, so that no other model is needed. With `h` the mean over the prompt's tokens of the last
//! layer's output and `f = (h - center) / spread` feature by feature, `p(e | row) = softmax(W f + b)_e`. The `top_k`
//! likeliest experts serve the row at the weights `softmax(log p / temperature)` among them.
//!
//! State: `centre` and `spread`, `[1, hidden]`, `weights`, `[experts, hidden]`, and `biases`, `[1, experts]`.

use crate::error::{Result, RouteError};
use crate::fixed::row_weights::observed_row_weights;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, read, write};
use crate::mixing::Mixing;
use crate::prompt::prompt_router::{PromptPass, PromptRouter};
use crate::prompt::top_k_softmax::top_k_softmax;
use crate::router::{Router, RouterContext};
use crate::training_data::TrainingData;
use candle_core::{DType, Tensor};
use lorakit_lora::{Patches, SequenceBatch};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `tp`.
pub static TP: MethodInfo<dyn Router> = MethodInfo {
    name: "tp",
    aliases: &[],
    summary: "per row, the expert of the task that the prompt looks like; learns a classifier",
    link: Some("https://arxiv.org/abs/2405.11157"),
    defaults: defaults::<TaskPredictor>,
    parse: |name, typed| Ok(Arc::new(read::<TaskPredictor>(name, typed)?)),
    version: 2,
};

/// The router `tp`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskPredictor {
    /// The maximum number of experts of a row.
    pub top_k: Limit,
    /// The temperature of the softmax over the log-probabilities of the chosen experts.
    pub temperature: f32,
    /// The maximum number of rows of each task that the classifier is fitted to.
    pub rows: Limit,
    /// How the chosen experts' deltas are combined.
    pub mixing: Mixing,
}

impl Default for TaskPredictor {
    fn default() -> Self {
        Self { top_k: Limit(1), temperature: 1.0, rows: Limit(100), mixing: Mixing::Outputs }
    }
}

impl Settings for TaskPredictor {
    fn validate(&self) -> Result<(), String> {
        above_zero("temperature", self.temperature)
    }
}

impl fmt::Display for TaskPredictor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, TP.name, self)
    }
}

impl Router for TaskPredictor {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &TP
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// Under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        observed_row_weights(experts, self.mixing, context.observer.clone())
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library.
    fn prompt_router(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Option<Arc<dyn PromptRouter>>> {
        let state = context.state_of(self)?;
        let hidden = state.matrices().get("centre").map_or(0, |center| center.cols());
        Ok(Some(Arc::new(Classifier {
            top_k: self.top_k.0.min(experts.len()),
            temperature: self.temperature,
            center: state.values("centre", (1, hidden))?,
            spread: state.values("spread", (1, hidden))?,
            weights: state.values("weights", (experts.len(), hidden))?,
            biases: state.values("biases", (1, experts.len()))?,
        })))
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::ExpertTasks { rows: self.rows.0 })
    }
}

#[derive(Clone)]
struct Classifier {
    top_k: usize,
    temperature: f32,
    center: Vec<f32>,
    spread: Vec<f32>,
    weights: Vec<f32>,
    biases: Vec<f32>,
}

impl PromptRouter for Classifier {
    fn start(&self) -> Box<dyn PromptPass> {
        Box::new(self.clone())
    }
}

impl PromptPass for Classifier {
    fn patches(&self) -> Patches {
        Patches::none()
    }

    fn weights(&self, rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let (width, found) = (self.center.len(), hidden.dim(1)?);
        if width == 0 || found != width {
            return Err(RouteError::Features { expected: width, found });
        }
        let features = mean_hidden(rows, hidden)?;
        let decide = |features: &[f32]| {
            let standard = features.iter().zip(&self.center).zip(&self.spread).map(|((h, c), s)| (h - c) / s);
            let standard: Vec<f32> = standard.collect();
            let logit =
                |(weights, bias): (&[f32], &f32)| bias + weights.iter().zip(&standard).map(|(w, f)| w * f).sum::<f32>();
            let logits: Vec<f32> = self.weights.chunks_exact(width).zip(&self.biases).map(logit).collect();
            top_k_softmax(&logits, self.top_k, self.temperature)
        };
        Ok(features.chunks_exact(width).map(decide).collect())
    }
}

/// The mean over each row's tokens of `hidden`, `[tokens, hidden]`, as `[rows, hidden]`.
///
/// # Errors
/// If `hidden` has another number of tokens than the rows.
pub fn mean_hidden(rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<f32>> {
    let (tokens, width) = hidden.dims2()?;
    if tokens != rows.tokens() {
        return Err(RouteError::OtherRows);
    }
    let values = hidden.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut means = vec![0.0; rows.len() * width];
    for (mean, row) in means.chunks_exact_mut(width).zip(rows.iter()) {
        for token in values[row.start * width..(row.start + row.len) * width].chunks_exact(width) {
            mean.iter_mut().zip(token).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= row.len.max(1) as f32);
    }
    Ok(means)
}
