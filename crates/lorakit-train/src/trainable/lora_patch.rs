//! The forward hook of LoRA adapters in training: dropout, then each row's own expert.

use crate::backward::gradient_sinks::GradientSinks;
use crate::error::Result;
use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::{LoraStack, SiteStack};
use candle_core::Tensor;
use lorakit_lora::kernels::op::Op;
use lorakit_lora::{
    FrozenLinear, GradientSink, GroupedLora, LoraLinear, Outputs, Patch, Patches, SequenceBatch, TokenGroup,
};
use std::sync::Arc;

impl LoraStack {
    /// The patches of a batch whose rows name their experts, for candle's graph.
    pub fn graph_patches(&self, dropout: Option<&Dropout>) -> Result<Patches> {
        let patch = |(site, stack): (usize, &Option<SiteStack>)| -> Result<Option<Arc<dyn Patch>>> {
            let Some(stack) = stack else { return Ok(None) };
            Ok(Some(Arc::new(LoraPatch::new(stack, site, dropout, None)?)))
        };
        Ok(Patches::new(self.sites.iter().enumerate().map(patch).collect::<Result<_>>()?))
    }

    /// The same patches for tapes on a CPU, with the sinks in which they leave their gradients.
    pub fn tape_patches(&self, dropout: Option<&Dropout>) -> Result<(Patches, GradientSinks)> {
        let mut sinks = GradientSinks::default();
        let mut patch = |(site, stack): (usize, &Option<SiteStack>)| -> Result<Option<Arc<dyn Patch>>> {
            let Some(stack) = stack else { return Ok(None) };
            let sink = GradientSink::default();
            sinks.push([&stack.a, &stack.b].map(|v| v.as_tensor().id()), sink.clone());
            Ok(Some(Arc::new(LoraPatch::new(stack, site, dropout, Some(sink))?)))
        };
        let patches = self.sites.iter().enumerate().map(&mut patch).collect::<Result<_>>()?;
        Ok((Patches::new(patches), sinks))
    }
}

/// The patch of one site.
struct LoraPatch {
    grouped: GroupedLora,
    site: usize,
    dropout: Option<Dropout>,
    /// Where tapes leave the gradients; None in candle's graph.
    sink: Option<GradientSink>,
}

impl LoraPatch {
    fn new(stack: &SiteStack, site: usize, dropout: Option<&Dropout>, sink: Option<GradientSink>) -> Result<Self> {
        let (a, b) = (stack.a.as_tensor().clone(), stack.b.as_tensor().clone());
        let grouped = GroupedLora::new(a, b, stack.layout.clone())?;
        Ok(Self { grouped, site, dropout: dropout.cloned(), sink })
    }
}

impl Patch for LoraPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let groups = TokenGroup::of_sequences(rows);
        match &self.dropout {
            Some(dropout) => self.grouped.add(&dropout.apply(x, rows, self.site)?, groups, out),
            None => self.grouped.add(x, groups, out),
        }
    }

    fn site_op(
        &self,
        frozen: Arc<dyn FrozenLinear>,
        rows: &SequenceBatch,
    ) -> candle_core::Result<Option<Box<dyn Op<1>>>> {
        let Some(sink) = &self.sink else { return Ok(None) };
        let input = frozen.input();
        let site = LoraLinear::new(frozen, self.grouped.clone(), TokenGroup::of_sequences(rows), sink.clone())?;
        Ok(Some(Box::new(match &self.dropout {
            Some(dropout) => site.masked(dropout.mask(rows, input, self.site)?),
            None => site,
        })))
    }
}
