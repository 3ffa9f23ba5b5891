//! The mean of all experts at the length of Arrow's delta: what is left of Arrow when only its strength is kept.
//!
//! At every site and token, with `u` the mean's delta and `a` Arrow's, both over all projections of the site, it adds
//! `u |a| / |u|`. Arrow is better than this only by the direction that its choice of experts has.

use crate::error::Result;
use crate::fixed::uniform::uniform_patch;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, read, write};
use crate::mixing::Mixing;
use crate::router::{Router, RouterContext};
use crate::site_patches::site_patches;
use crate::token::arrow::Arrow;
use candle_core::{DType, Tensor};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `arrow_norm`.
pub static ARROW_NORM: MethodInfo<dyn Router> = MethodInfo {
    name: "arrow_norm",
    aliases: &[],
    summary: "the mean of all experts, scaled to the length of Arrow's delta per token and site; a baseline for Arrow's choice",
    link: None,
    defaults: defaults::<ArrowNorm>,
    parse: |name, typed| Ok(Arc::new(read::<ArrowNorm>(name, typed)?)),
    version: 1,
};

/// The router `arrow_norm`, with the settings of the Arrow whose length it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArrowNorm {
    /// As of [`Arrow`].
    pub top_k: Limit,
    /// As of [`Arrow`].
    pub temperature: f32,
    /// How the deltas of both are combined.
    pub mixing: Mixing,
}

impl Default for ArrowNorm {
    fn default() -> Self {
        let Arrow { top_k, temperature, mixing, .. } = Arrow::default();
        Self { top_k, temperature, mixing }
    }
}

impl Settings for ArrowNorm {
    fn validate(&self) -> std::result::Result<(), String> {
        above_zero("temperature", self.temperature)
    }
}

impl fmt::Display for ArrowNorm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, ARROW_NORM.name, self)
    }
}

impl Router for ArrowNorm {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &ARROW_NORM
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// As of [`Arrow`].
    fn patches(&self, experts: &LibraryStack, _: &RouterContext) -> Result<Patches> {
        let arrow = Arrow { top_k: self.top_k, temperature: self.temperature, mixing: self.mixing, ..Arrow::default() };
        site_patches(experts, |index, site, stack| {
            let mean = uniform_patch(self.mixing, experts, site, stack)?;
            let arrow = arrow.site_patch(experts, (index, site, stack), None)?;
            let both = mean.zip(arrow);
            Ok(both.map(|(mean, arrow)| Arc::new(MeanAtNorm { mean, arrow }) as Arc<dyn Patch>))
        })
    }
}

struct MeanAtNorm {
    mean: Arc<dyn Patch>,
    arrow: Arc<dyn Patch>,
}

impl Patch for MeanAtNorm {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let delta = |patch: &Arc<dyn Patch>| {
            let mut zeros = Outputs::new(out.tensor().zeros_like()?.to_dtype(DType::F32)?);
            patch.add(x, rows, &mut zeros)?;
            Ok::<_, candle_core::Error>(zeros.into_tensor())
        };
        let length = |delta: &Tensor| delta.sqr()?.sum_keepdim(1)?.sqrt();
        let (mean, arrow) = (delta(&self.mean)?, delta(&self.arrow)?);
        // A mean of length zero stays zero: the factor is large, but finite.
        let factor = (length(&arrow)? / length(&mean)?.maximum(1e-20)?)?;
        out.add(&mean.broadcast_mul(&factor)?.to_dtype(out.tensor().dtype())?)
    }
}
