//! The base, tasks and training settings of the demo: pico and suite:skills.

use crate::base::base_source::BaseSource;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use anyhow::Result;
use lorakit_model::Base;
use lorakit_task::skills::{self, SkillFamily, SuitePart};
use lorakit_task::{Task, Tokenizer};
use lorakit_train::{LossReduction, StepInterval, TrainConfig};

/// The base, the tasks and the training settings.
pub struct Setup {
    /// Where the base is.
    pub resolved: ResolvedBase,
    /// The base, pico.
    pub base: Base,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tasks that experts are trained on.
    pub training: Vec<Task>,
    /// Tasks of the same families that no expert is trained on.
    pub held_out: Vec<Task>,
    /// The families of the tasks.
    pub families: Vec<SkillFamily>,
    /// How experts are trained.
    pub config: TrainConfig,
    /// Test rows scored per task.
    pub limit: usize,
}

impl Setup {
    /// The full setup, or about a fifth of the work with `quick`.
    pub fn open(quick: bool, context: &CommandContext) -> Result<Self> {
        let resolved = BaseSource::Pico.resolve(context)?;
        let (base, tokenizer) = (resolved.base(context)?, resolved.tokenizer()?);
        let families: Vec<SkillFamily> =
            SkillFamily::ALL.into_iter().take(if quick { 4 } else { SkillFamily::ALL.len() }).collect();
        let known = |task: &Task| skills::family_of(&task.name).is_some_and(|family| families.contains(&family));
        let tasks = |part| skills::tasks(skills::SEED, part).into_iter().filter(known).collect();
        let (training, held_out) = (tasks(SuitePart::Training), tasks(SuitePart::HeldOut));
        let config = config(if quick { 24 } else { STEPS });
        Ok(Self { resolved, base, tokenizer, training, held_out, families, config, limit: if quick { 8 } else { 24 } })
    }
}

/// Optimizer steps per task of an expert.
const STEPS: usize = 60;

/// How experts are trained. Their change of the base is that of adapters of large models, a few percent of the weights:
/// many modules and a high rank change each weight little for what they learn. `scripts/results/README.md` has the settings that
/// were tried on validation rows.
fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        rank: 16,
        alpha: 16.0,
        target_modules: "all-linear".to_owned(),
        learning_rate: 1e-3,
        max_steps: Some(steps),
        batch_size: 16,
        max_grad_norm: 1.0,
        dropout: 0.0,
        eval_steps: Some(StepInterval::NEVER),
        loss_reduction: LossReduction::Tokens,
        ..TrainConfig::default()
    }
}
