//! What a pass trains: adapters, all weights of the base, or skills with their routing.

use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::{LoraGradients, LoraStack};
use crate::trainable::skill_stack::{RowTasks, SkillStack};
use anyhow::Result;
use candle_core::{Tensor, Var};
use lorakit_lora::Patches;
use lorakit_model::Base;

/// What is trained, as variables.
pub(crate) enum TrainableSet {
    /// Adapters in the slots of a frozen base, one of each job.
    Adapters(LoraStack),
    /// The base's own weights, by one job (the paper's FullFT).
    Weights(Vec<Var>),
    /// Skills and routing, by one job of several tasks.
    Skills(SkillStack, RowTasks),
}

impl TrainableSet {
    /// What sits in the slots.
    pub(crate) fn patches(&self, dropout: Option<&Dropout>) -> Result<Patches> {
        match self {
            Self::Adapters(stack) => stack.patches(dropout),
            Self::Weights(_) => Ok(Patches::none()),
            Self::Skills(stack, _) => Ok(stack.patches(dropout)),
        }
    }

    /// The same for a batch that is differentiated, and what is collected of the gradients where that is not done by
    /// candle's graph: of adapters on a CPU.
    pub(crate) fn differentiated(
        &self,
        base: &Base,
        dropout: Option<&Dropout>,
    ) -> Result<(Patches, Option<LoraGradients>)> {
        match self {
            Self::Adapters(stack) if base.device().is_cpu() => {
                let (patches, collected) = stack.collected(dropout)?;
                Ok((patches, Some(collected)))
            }
            _ => Ok((self.patches(dropout)?, None)),
        }
    }

    /// Whose row a job's training row is to the patches: the job's, or the task's.
    pub(crate) fn owner(&self, job: usize, row: usize) -> usize {
        match self {
            Self::Skills(_, of) => of.train[row],
            _ => job,
        }
    }

    /// The same of a row for validation.
    pub(crate) fn validation_owner(&self, job: usize, row: usize) -> usize {
        match self {
            Self::Skills(_, of) => of.validation[row],
            _ => job,
        }
    }

    /// A job's values, to be kept as its best.
    pub(crate) fn values(&self, job: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Adapters(stack) => stack.values(job),
            Self::Weights(_) | Self::Skills(..) => {
                self.shared().iter().map(|variable| Ok(variable.flatten_all()?.to_vec1()?)).collect()
            }
        }
    }

    /// The variables, where one job has them all.
    fn shared(&self) -> Vec<Var> {
        match self {
            Self::Adapters(_) => Vec::new(),
            Self::Weights(weights) => weights.clone(),
            Self::Skills(stack, _) => {
                let all = stack.skill_variables().into_iter().chain(stack.routing_variables());
                all.map(|(_, variable)| variable).collect()
            }
        }
    }

    /// Puts kept values back into the variables, where one job has them all.
    pub(crate) fn set(&self, values: &[Vec<f32>]) -> Result<()> {
        for (variable, values) in self.shared().iter().zip(values) {
            variable.set(&Tensor::from_slice(values, variable.shape(), variable.device())?)?;
        }
        Ok(())
    }
}
