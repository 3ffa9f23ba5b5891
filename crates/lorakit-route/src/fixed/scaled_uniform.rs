//! The mean of all experts, with one strength for the whole library that is chosen on validation rows: what a mixture gains
//! by its strength alone, without any choice of experts.
//!
//! The mean of `n` experts that point in different directions is about `1/sqrt(n)` as long as each of them, so that a
//! router of few experts may beat it by its length. The strengths that are tried are powers of two, [`SCALES`], then the
//! geometric means of the best and its neighbors.
//!
//! State: `scale`, `[1, 1]`.

use crate::error::Result;
use crate::fixed::uniform::Uniform;
use crate::library_stack::LibraryStack;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, at_least_one, defaults, read, write};
use crate::mixing::Mixing;
use crate::router::{Router, RouterContext};
use crate::training_data::TrainingData;
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The strengths that are tried first.
pub const SCALES: [f32; 8] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// The router `scaled_uniform`.
pub static SCALED_UNIFORM: MethodInfo<dyn Router> = MethodInfo {
    name: "scaled_uniform",
    aliases: &[],
    summary: "the mean of all experts, at one strength chosen on validation rows of the experts' tasks; a baseline for \
              routers that are stronger than the mean",
    link: None,
    defaults: defaults::<ScaledUniform>,
    parse: |name, typed| Ok(Arc::new(read::<ScaledUniform>(name, typed)?)),
    version: 2,
};

/// The router `scaled_uniform`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScaledUniform {
    /// The maximum number of validation rows of each task.
    pub rows: usize,
    /// How the experts' deltas are combined.
    pub mixing: Mixing,
}

impl Default for ScaledUniform {
    fn default() -> Self {
        Self { rows: 16, mixing: Mixing::Outputs }
    }
}

impl Settings for ScaledUniform {
    fn validate(&self) -> std::result::Result<(), String> {
        at_least_one("rows", self.rows)
    }
}

impl fmt::Display for ScaledUniform {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, SCALED_UNIFORM.name, self)
    }
}

impl Router for ScaledUniform {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &SCALED_UNIFORM
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// If the state is missing; under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        let scale = context.state_of(self)?.values("scale", (1, 1))?[0];
        self.at(scale).patches(experts, context)
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::ExpertValidation { rows: self.rows })
    }
}

impl ScaledUniform {
    /// The mean at a strength.
    pub fn at(&self, scale: f32) -> Uniform {
        Uniform { mixing: self.mixing, scale }
    }
}
