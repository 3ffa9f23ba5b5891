//! The experts of a site, applied to inputs of any float type.

use candle_core::{DType, Tensor};
use lorakit_lora::{Addition, GroupedLora, Outputs, TokenGroup};
use std::sync::Arc;

/// The experts of a site.
#[derive(Clone)]
pub(crate) struct SiteLora(pub(crate) GroupedLora);

impl SiteLora {
    /// What adds the delta of `groups` over `x`, `[tokens, in]`, to outputs of any float type. The experts are f32; for a
    /// model of another type the delta is rounded once, at the end.
    pub(crate) fn begin<'a>(&'a self, x: &'a Tensor, groups: Arc<[TokenGroup]>) -> candle_core::Result<Addition<'a>> {
        if x.device().is_cpu() && x.dtype() == DType::F32 {
            return self.0.begin(x, groups);
        }
        Ok(Box::new(move |out| self.add(x, groups, out)))
    }

    /// Adds the delta of `groups` to outputs of any float type.
    pub(crate) fn add(&self, x: &Tensor, groups: Arc<[TokenGroup]>, out: &mut Outputs) -> candle_core::Result<()> {
        let dtype = out.tensor().dtype();
        if dtype != DType::F32 {
            return out.add(&self.delta(x, groups)?.to_dtype(dtype)?);
        }
        self.0.add(&x.to_dtype(DType::F32)?, groups, out)
    }

    /// The delta of `groups` in f32.
    pub(crate) fn delta(&self, x: &Tensor, groups: Arc<[TokenGroup]>) -> candle_core::Result<Tensor> {
        self.0.delta(&x.to_dtype(DType::F32)?, groups)
    }
}
