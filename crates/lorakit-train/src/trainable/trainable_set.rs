//! The variables that a pass trains: adapters, all weights of the base, or skills with their routing.

use crate::backward::gradient_sinks::GradientSinks;
use crate::error::Result;
use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::LoraStack;
use crate::trainable::skill_stack::{RowTasks, SkillStack};
use candle_core::{Tensor, Var};
use lorakit_lora::Patches;
use lorakit_model::Base;

/// The trained variables.
pub(crate) enum TrainableSet {
    /// One adapter per job, over a frozen base.
    Adapters(LoraStack),
    /// The base's own weights, by one job.
    Weights(Vec<Var>),
    /// Skills and routing, by one job of several tasks.
    Skills(SkillStack, RowTasks),
}

impl TrainableSet {
    /// The patches of a forward.
    pub(crate) fn patches(&self, dropout: Option<&Dropout>) -> Result<Patches> {
        match self {
            Self::Adapters(stack) => stack.graph_patches(dropout),
            Self::Weights(_) => Ok(Patches::none()),
            Self::Skills(stack, _) => Ok(stack.patches(dropout)),
        }
    }

    /// The patches of a batch that is differentiated, with the sinks of its gradients if tapes do that: for adapters on
    /// a CPU.
    pub(crate) fn backward_patches(
        &self,
        base: &Base,
        dropout: Option<&Dropout>,
    ) -> Result<(Patches, Option<GradientSinks>)> {
        match self {
            Self::Adapters(stack) if base.device().is_cpu() => {
                let (patches, sinks) = stack.tape_patches(dropout)?;
                Ok((patches, Some(sinks)))
            }
            _ => Ok((self.patches(dropout)?, None)),
        }
    }

    /// The expert that the patches read for a training row of a job: the job's index, or the row's task.
    pub(crate) fn train_owner(&self, job: usize, row: usize) -> usize {
        match self {
            Self::Skills(_, tasks) => tasks.train[row],
            _ => job,
        }
    }

    /// The expert that the patches read for a validation row of a job.
    pub(crate) fn validation_owner(&self, job: usize, row: usize) -> usize {
        match self {
            Self::Skills(_, tasks) => tasks.validation[row],
            _ => job,
        }
    }

    /// The current values of a job's variables, to be kept as its best.
    pub(crate) fn values(&self, job: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Adapters(stack) => stack.values(job),
            Self::Weights(_) | Self::Skills(..) => {
                self.single_job_variables().iter().map(|variable| Ok(variable.flatten_all()?.to_vec1()?)).collect()
            }
        }
    }

    /// All variables, if they belong to a single job.
    fn single_job_variables(&self) -> Vec<Var> {
        match self {
            Self::Adapters(_) => Vec::new(),
            Self::Weights(weights) => weights.clone(),
            Self::Skills(stack, _) => {
                let all = stack.skill_variables().into_iter().chain(stack.routing_variables());
                all.map(|(_, variable)| variable).collect()
            }
        }
    }

    /// Sets the variables of a single job to kept values.
    pub(crate) fn restore(&self, values: &[Vec<f32>]) -> Result<()> {
        for (variable, values) in self.single_job_variables().iter().zip(values) {
            variable.set(&Tensor::from_slice(values, variable.shape(), variable.device())?)?;
        }
        Ok(())
    }
}
