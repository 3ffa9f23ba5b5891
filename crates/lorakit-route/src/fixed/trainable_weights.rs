//! The weights of a mixture as trainable variables.

use crate::error::Result;
use crate::fixed::weight_groups::{Granularity, WeightGroups};
use crate::library_stack::LibraryStack;
use crate::ordered_results::ordered_results;
use crate::stack::{RoutingScope, Stack};
use candle_core::{DType, Device, Tensor, Var};
use lorakit_adapter::Matrix;
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch, Site, WeightedLora};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The weights of [`crate::Cat`] as variables.
pub struct TrainableWeights<'a> {
    experts: &'a LibraryStack,
    groups: WeightGroups,
    simplex: bool,
    /// The weights, or their logits: `[groups, experts]`.
    weights: Var,
    /// Added to the logits: minus infinity for experts without a module in the group.
    mask: Tensor,
    /// `g`, `[1]`.
    scale: Var,
    sites: Vec<(usize, WeightedLora)>,
}

impl<'a> TrainableWeights<'a> {
    pub(crate) fn new(granularity: Granularity, simplex: bool, experts: &'a LibraryStack) -> Result<Self> {
        let groups = WeightGroups::of(granularity, experts);
        let scope = if granularity == Granularity::Module { RoutingScope::Projection } else { RoutingScope::Site };
        let weighted = |(index, _, stack): (usize, &Site, &Stack)| -> Result<_> {
            let weighted = WeightedLora::new(stack.a()?.clone(), stack.b()?.clone(), &stack.layout(scope))?;
            stack.device().synchronize()?;
            Ok((index, weighted))
        };
        // The matrices are stacked here, on all threads.
        let sites = ordered_results(experts.stacks().collect::<Vec<_>>().into_par_iter().map(weighted))?;
        let device = experts.stacks().next().map_or(Device::Cpu, |(_, _, stack)| stack.device().clone());
        let (n, present) = (experts.len(), groups.present(experts));
        let start = if simplex { 0.0 } else { 1.0 / n as f32 };
        // A group without experts is unused; its weights only have to be finite.
        let masked = |group: &BTreeSet<usize>| {
            let counts = |e| group.is_empty() || group.contains(&e);
            (0..n).map(|e| if counts(e) { 0.0 } else { f32::NEG_INFINITY }).collect::<Vec<f32>>()
        };
        let mask: Vec<f32> = present.iter().flat_map(masked).collect();
        let shape = (groups.names.len(), n);
        Ok(Self {
            experts,
            simplex,
            weights: Var::from_tensor(&Tensor::full(start, shape, &device)?)?,
            mask: Tensor::from_vec(mask, shape, &device)?,
            scale: Var::from_tensor(&Tensor::ones(1, DType::F32, &device)?)?,
            groups,
            sites,
        })
    }

    /// The variables by name.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let weights = ("weights of the experts".to_owned(), self.weights.clone());
        vec![weights, ("their common factor".to_owned(), self.scale.clone())]
    }

    /// The effective weights, `[groups, experts]`, differentiable with respect to the variables.
    fn used(&self) -> candle_core::Result<Tensor> {
        let weights = match self.simplex {
            false => self.weights.as_tensor().clone(),
            true => {
                let logits = (self.weights.as_tensor() + &self.mask)?;
                // The softmax does not change, and f32 does not overflow.
                let exp = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
                exp.broadcast_div(&exp.sum_keepdim(1)?)?
            }
        };
        weights.broadcast_mul(self.scale.as_tensor())
    }

    /// Patches that apply the weights, differentiable with respect to the variables.
    ///
    /// # Errors
    /// If candle refuses a tensor.
    pub fn patches(&self) -> candle_core::Result<Patches> {
        let used = self.used()?;
        let mut by_site: Vec<Option<Arc<dyn Patch>>> = vec![None; self.experts.sites().len()];
        for (site, lora) in &self.sites {
            let groups = lora.slots() / self.experts.len();
            let weights = used.narrow(0, self.groups.group(*site, 0), groups)?.flatten_all()?;
            by_site[*site] = Some(Arc::new(TrainablePatch { lora: lora.clone(), weights }));
        }
        Ok(Patches::new(by_site))
    }

    /// The current weights, `[groups, experts]`, as [`crate::Cat`] reads them.
    ///
    /// # Errors
    /// If candle refuses a tensor, or a weight is not finite.
    pub fn values(&self) -> Result<Matrix> {
        let used = self.used()?.detach();
        let (rows, columns) = used.dims2()?;
        let values = used.flatten_all()?.to_vec1()?;
        Ok(Matrix::new(rows, columns, values)?)
    }
}

/// All experts of a site at learned weights.
struct TrainablePatch {
    lora: WeightedLora,
    weights: Tensor,
}

impl Patch for TrainablePatch {
    fn add(&self, x: &Tensor, _: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let delta = self.lora.delta(&x.to_dtype(DType::F32)?, &self.weights)?;
        out.add(&delta.to_dtype(out.tensor().dtype())?)
    }
}
