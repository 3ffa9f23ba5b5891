//! Fits skills to one target task: their routing alone, or skills and routing.

use crate::backward::token_loss::{FitRow, TokenLoss};
use crate::error::{Result, TrainError};
use crate::job::batch_indices;
use crate::optim::optimizer::{ParameterGroup, minimize};
use crate::train_config::TrainConfig;
use crate::trainable::skill_stack::SkillStack;
use lorakit_model::Base;
use lorakit_task::Example;

/// What is trained on the target task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FitScope {
    /// The routing (PolyZ of <https://arxiv.org/abs/2405.11157>, Table 6).
    Routing,
    /// Skills and routing (Poly there).
    All,
}

/// How skills are fitted to a target task.
#[derive(Clone, Copy)]
pub struct RoutingFit<'a> {
    /// The base.
    pub base: &'a Base,
    /// Learning rates, batch size, and steps or epochs. Dropout is not applied.
    pub config: &'a TrainConfig,
    /// What is trained.
    pub scope: FitScope,
    /// The seed of the order of examples.
    pub seed: u64,
}

impl RoutingFit<'_> {
    /// Fits a stack of one task to its examples. Returns the loss of every step.
    ///
    /// # Errors
    /// If there are no examples, or a loss or gradient is not finite.
    pub fn fit(&self, stack: &SkillStack, examples: &[Example]) -> Result<Vec<f64>> {
        if examples.is_empty() {
            return Err(TrainError::NoExamples);
        }
        let config = self.config;
        let per_step = config.rows_per_step();
        let steps = config.max_steps.unwrap_or_else(|| config.steps_of_epochs(examples.len().div_ceil(per_step)));
        let routing = ParameterGroup {
            learning_rate: config.routing_learning_rate,
            ..ParameterGroup::new(stack.routing_variables(), config)
        };
        let groups = match self.scope {
            FitScope::Routing => vec![routing],
            FitScope::All => vec![routing, ParameterGroup::new(stack.skill_variables(), config)],
        };
        let loss = TokenLoss::new(self.base, config);
        let schedule = config.schedule(steps);
        minimize(groups, schedule, |step, variables, gradients| {
            let batch = batch_indices(self.seed, "routing", examples.len(), per_step, step);
            let rows: Vec<FitRow> = batch.into_iter().map(|index| (Some(0), &examples[index])).collect();
            Ok(loss.gradients(&rows, |_| Ok(stack.patches(None)), variables, gradients)?)
        })
    }
}
