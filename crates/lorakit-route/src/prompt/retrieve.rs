//! Retrieval of experts by the tasks that a prompt resembles (LoRAuter, 2026, <https://arxiv.org/abs/2601.21795>).
//!
//! The embedding of a task is the mean over the prompts of at most `rows` of its training rows; of the tasks, the `top_k` of
//! the largest cosines with a prompt's embedding are served at the weights `softmax(cosine / temperature)` among them. A
//! task's weight goes to its expert, and those of an expert's tasks add up: one weight of each expert for the whole row,
//! `y = W x + sum_e w_e s_e B_e A_e x`.
//!
//! There is no code of the authors. They take a model of sentence embeddings; here, so that no other model is needed, an
//! embedding is the mean over the prompt's tokens of the base's last hidden state, as for [`crate::TaskPredictor`], less the
//! mean over the tasks, as for clusters of embeddings: all texts have much in common, and without this all cosines are near
//! one. They choose the expert of a task among all by its answers to validation rows; here it is the one trained on it.
//!
//! An expert that changes nothing is no candidate, and equal cosines go to the first task.
//!
//! State: `embeddings`, `[tasks, hidden]`; `center`, `[1, hidden]`, their mean; and `experts`, `[1, tasks]`, the expert of
//! each task.

use crate::error::{Result, RouteError};
use crate::fixed::row_weights::observed_row_weights;
use crate::inner_products::inner_products;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, read, write};
use crate::mixing::Mixing;
use crate::prompt::prompt_router::{PromptPass, PromptRouter};
use crate::prompt::task_predictor::mean_hidden;
use crate::prompt::top_k_softmax::top_k_softmax;
use crate::router::{Router, RouterContext};
use crate::router_state::RouterState;
use crate::training_data::TrainingData;
use candle_core::{Device, Tensor};
use lorakit_adapter::{LowRank, Matrix};
use lorakit_lora::{Patches, SequenceBatch};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `retrieve`.
pub static RETRIEVE: MethodInfo<dyn Router> = MethodInfo {
    name: "retrieve",
    aliases: &[],
    summary: "per row, the experts of the tasks whose prompts have the nearest mean embeddings (LoRAuter)",
    link: Some("https://arxiv.org/abs/2601.21795"),
    defaults: defaults::<Retrieve>,
    parse: |name, typed| Ok(Arc::new(read::<Retrieve>(name, typed)?)),
    version: 1,
};

/// The router `retrieve`. The defaults are the paper's; the embedding and its centering are not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retrieve {
    /// The maximum number of rows of each task.
    pub rows: Limit,
    /// The maximum number of tasks whose experts serve a row.
    pub top_k: Limit,
    /// The temperature of the softmax over their cosines.
    pub temperature: f32,
}

impl Default for Retrieve {
    fn default() -> Self {
        Self { rows: Limit(200), top_k: Limit(3), temperature: 0.2 }
    }
}

impl Settings for Retrieve {
    fn validate(&self) -> Result<(), String> {
        above_zero("temperature", self.temperature)
    }
}

impl fmt::Display for Retrieve {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, RETRIEVE.name, self)
    }
}

impl Router for Retrieve {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &RETRIEVE
    }

    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        observed_row_weights(experts, Mixing::Outputs, context.observer.clone())
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library.
    fn prompt_router(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Option<Arc<dyn PromptRouter>>> {
        let state = context.state_of(self)?;
        let (tasks, hidden) =
            state.matrices().get("embeddings").map_or((0, 0), |embeddings| (embeddings.rows(), embeddings.cols()));
        let center = state.values("center", (1, hidden))?;
        let embeddings = state.values("embeddings", (tasks, hidden))?;
        let (mut directions, mut experts_of_tasks) = (Vec::new(), Vec::new());
        for (embedding, expert) in embeddings.chunks_exact(hidden).zip(state.values("experts", (1, tasks))?) {
            let adapter = experts.experts().get(expert as usize).ok_or(RouteError::StateExperts(experts.len()))?;
            if adapter.adapter.modules().values().any(changes_something) {
                directions.extend(direction(embedding, &center));
                experts_of_tasks.push(expert as usize);
            }
        }
        Ok(Some(Arc::new(NearestTasks(Arc::new(TaskEmbeddings {
            retrieve: self.clone(),
            experts: experts.len(),
            directions: Tensor::from_vec(directions, (experts_of_tasks.len(), hidden), &Device::Cpu)?,
            experts_of_tasks,
            center,
        })))))
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::ExpertTasks { rows: self.rows.0 })
    }
}

impl Retrieve {
    /// The state of these rows: the embedding of each, the index of its task, and the expert of each task.
    ///
    /// # Errors
    /// If an expert has no row.
    pub fn state(
        experts: &LibraryStack,
        embeddings: &[Vec<f32>],
        tasks: &[usize],
        experts_of_tasks: &[usize],
    ) -> Result<RouterState> {
        let hidden = embeddings.first().map_or(0, Vec::len);
        let mut means = vec![(0u32, vec![0f64; hidden]); experts_of_tasks.len()];
        for (embedding, task) in embeddings.iter().zip(tasks) {
            let (rows, sum) = &mut means[*task];
            *rows += 1;
            sum.iter_mut().zip(embedding).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let seen = || means.iter().zip(experts_of_tasks).filter(|((rows, _), _)| *rows > 0);
        if let Some(expert) = (0..experts.len()).find(|expert| seen().all(|(_, of_task)| of_task != expert)) {
            return Err(RouteError::NoRows(experts.names()[expert].clone()));
        }
        let mean = |(rows, sum): &(u32, Vec<f64>)| sum.iter().map(|sum| sum / f64::from(*rows)).collect::<Vec<f64>>();
        let means: Vec<Vec<f64>> = seen().map(|(of_task, _)| mean(of_task)).collect();
        let center = (0..hidden).map(|at| means.iter().map(|mean| mean[at]).sum::<f64>() / means.len() as f64);
        let of_tasks: Vec<f32> = seen().map(|(_, expert)| *expert as f32).collect();
        let embeddings = means.iter().flatten().map(|value| *value as f32).collect();
        let matrices = [
            ("center", Matrix::new(1, hidden, center.map(|value| value as f32).collect())?),
            ("embeddings", Matrix::new(means.len(), hidden, embeddings)?),
            ("experts", Matrix::new(1, of_tasks.len(), of_tasks)?),
        ];
        Ok(RouterState::new(matrices.map(|(name, matrix)| (name.to_owned(), matrix))))
    }
}

fn changes_something(low_rank: &LowRank) -> bool {
    low_rank.norm() > 0.0
}

/// An embedding less the center, of length one; zeros if nothing is left.
fn direction(embedding: &[f32], center: &[f32]) -> Vec<f32> {
    let difference = || embedding.iter().zip(center).map(|(value, center)| f64::from(*value) - f64::from(*center));
    let length = difference().map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    difference().map(|value| (value / length) as f32).collect()
}

/// Compares prompts with the tasks.
struct NearestTasks(Arc<TaskEmbeddings>);

struct TaskEmbeddings {
    retrieve: Retrieve,
    /// Number of experts of the library.
    experts: usize,
    /// The tasks' embeddings less the center, of length one, `[tasks, hidden]`.
    directions: Tensor,
    experts_of_tasks: Vec<usize>,
    center: Vec<f32>,
}

impl PromptRouter for NearestTasks {
    fn start(&self) -> Box<dyn PromptPass> {
        Box::new(Self(self.0.clone()))
    }
}

impl PromptPass for NearestTasks {
    fn patches(&self) -> Patches {
        Patches::none()
    }

    fn weights(&self, rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let (width, found, tasks) = (self.0.center.len(), hidden.dim(1)?, self.0.experts_of_tasks.len());
        if width == 0 || found != width {
            return Err(RouteError::Features { expected: width, found });
        }
        let embeddings = mean_hidden(rows, hidden)?;
        if tasks == 0 {
            return Ok(vec![vec![0.0; self.0.experts].into(); rows.len()]);
        }
        let prompts: Vec<f32> =
            embeddings.chunks_exact(width).flat_map(|embedding| direction(embedding, &self.0.center)).collect();
        let prompts = Tensor::from_vec(prompts, (rows.len(), width), &Device::Cpu)?;
        let cosines = inner_products(&prompts, &self.0.directions)?;
        Ok(cosines.chunks_exact(tasks).map(|cosines| self.0.weights(cosines)).collect())
    }
}

impl TaskEmbeddings {
    /// The weights of all experts, from a prompt's cosines with the tasks.
    fn weights(&self, cosines: &[f32]) -> Arc<[f32]> {
        let of_tasks = top_k_softmax(cosines, self.retrieve.top_k.0, self.retrieve.temperature);
        let mut weights = vec![0.0; self.experts];
        self.experts_of_tasks.iter().zip(&*of_tasks).for_each(|(expert, weight)| weights[*expert] += weight);
        weights.into()
    }
}
