//! The small world of the demo: pico, the tasks of suite:skills, and how long experts learn.

use crate::base_source::{BaseSource, Located};
use crate::context::Context;
use anyhow::Result;
use lorakit_model::Base;
use lorakit_task::skills::{self, SkillFamily, SuitePart};
use lorakit_task::{Task, Tokenizer};
use lorakit_train::{LossReduction, TrainConfig};

/// What there is to learn, and from what base.
pub struct World {
    /// Where pico is.
    pub place: Located,
    /// pico.
    pub base: Base,
    /// Its tokenizer.
    pub vocabulary: Tokenizer,
    /// Tasks that experts are trained on.
    pub training: Vec<Task>,
    /// New members of the same families, which no expert has seen.
    pub held_out: Vec<Task>,
    /// The families that the tasks are of.
    pub families: Vec<SkillFamily>,
    /// How experts are trained.
    pub settings: TrainConfig,
    /// Test rows of a task that are scored.
    pub limit: usize,
}

impl World {
    /// The whole world, or a tenth of the work under `quick`.
    pub fn open(quick: bool, context: &Context) -> Result<Self> {
        let place = BaseSource::Pico.locate(context)?;
        let (base, vocabulary) = (place.base(context)?, place.vocabulary()?);
        let families: Vec<SkillFamily> =
            SkillFamily::ALL.into_iter().take(if quick { 4 } else { SkillFamily::ALL.len() }).collect();
        let known = |task: &Task| skills::family_of(&task.name).is_some_and(|family| families.contains(&family));
        let tasks = |part| skills::tasks(skills::SEED, part).into_iter().filter(known).collect();
        let (training, held_out) = (tasks(SuitePart::Training), tasks(SuitePart::HeldOut));
        let settings = TrainConfig {
            learning_rate: 1e-2,
            max_steps: Some(if quick { 24 } else { STEPS }),
            batch_size: 16,
            max_grad_norm: 1.0,
            dropout: 0.0,
            eval_steps: Some(0),
            loss_reduction: LossReduction::Tokens,
            ..TrainConfig::default()
        };
        Ok(Self { place, base, vocabulary, training, held_out, families, settings, limit: if quick { 8 } else { 24 } })
    }
}

/// Updates of an expert for each of its tasks.
const STEPS: usize = 60;
