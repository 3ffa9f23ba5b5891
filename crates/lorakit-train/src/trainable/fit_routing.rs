//! Skills brought to one target task: their routing alone, or both.

use crate::backward::layerwise::Gradients;
use crate::backward::token_loss::{FitRow, TokenLoss};
use crate::job::batch_indices;
use crate::optim::lr_schedule::LrSchedule;
use crate::optim::optimizer::{ParameterGroup, minimize};
use crate::train_config::TrainConfig;
use crate::trainable::skill_stack::SkillStack;
use anyhow::{Result, ensure};
use lorakit_model::Base;
use lorakit_task::Example;

/// What of the skills is trained on the target task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FitScope {
    /// The routing (PolyZ of <https://arxiv.org/abs/2405.11157>, Table 6).
    Routing,
    /// Skills and routing (Poly there).
    All,
}

/// Fits a stack of one task, number 0, to rows of it, by the settings' steps or epochs; returns the loss of every step.
/// There is no dropout.
///
/// # Errors
/// Where there are no rows, or a loss or gradient is no number.
pub fn fit_routing(
    base: &Base,
    stack: &SkillStack,
    rows: &[Example],
    tuned: FitScope,
    settings: &TrainConfig,
    seed: u64,
) -> Result<Vec<f64>> {
    ensure!(!rows.is_empty(), "there are no rows to fit the routing to");
    let per_update = settings.batch_size * settings.gradient_accumulation_steps;
    let steps = settings.max_steps.unwrap_or_else(|| rows.len().div_ceil(per_update) * settings.num_epochs);
    let routing = ParameterGroup {
        learning_rate: settings.routing_learning_rate,
        ..ParameterGroup::new(stack.routing_variables(), settings)
    };
    let groups = match tuned {
        FitScope::Routing => vec![routing],
        FitScope::All => vec![routing, ParameterGroup::new(stack.skill_variables(), settings)],
    };
    let loss = TokenLoss::new(base, settings);
    let schedule = LrSchedule::new(settings.lr_scheduler, settings.warmup_ratio, steps);
    minimize(groups, schedule, |step, variables, gradients: &mut Gradients| {
        let taken = batch_indices(seed, "routing", rows.len(), per_update, step);
        let rows: Vec<FitRow> = taken.into_iter().map(|at| (Some(0), &rows[at])).collect();
        loss.gradients(&rows, |_| Ok(stack.patches(None)), variables, gradients)
    })
}
