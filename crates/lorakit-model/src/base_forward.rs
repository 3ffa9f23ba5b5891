//! The forward of a base, layer by layer, with a patch at each site: hidden states, logits and the loss of targets.

use crate::base::Base;
use crate::forward_plan::ForwardPlan;
use crate::kv_cache::KvCache;
use crate::layer::layer_context::LayerContext;
use crate::layer::lm_head::HeadPatch;
use crate::layer::tape::Tape;
use crate::source_target::SourceTarget;
use crate::token_batch::TokenBatch;
use crate::weights::token_precision::TokenPrecision;
use crate::weights::weight::Weight;
use candle_core::{DType, Result, Tensor, bail};
use lorakit_lora::{Outputs, Patches, SequenceBatch};
use std::ops::Range;

impl Base {
    /// What all layers share in a forward of these sequences, packed one after another.
    pub fn plan(&self, sequences: SequenceBatch) -> ForwardPlan {
        match self.config().encoder {
            Some(encoder) => {
                let split = SourceTarget::packed(encoder.layers, &sequences);
                ForwardPlan::packed(sequences, &self.ropes).with_split(split)
            }
            None => ForwardPlan::packed(sequences, &self.ropes),
        }
    }

    /// The same for a batch whose last layer is only wanted where it predicts a target: its output is
    /// `[targets, hidden]`. For patches that look at one token at a time.
    pub fn plan_for_targets(&self, batch: &TokenBatch) -> Result<ForwardPlan> {
        let plan = self.plan(batch.sequences());
        let Some(last) = self.layers.len().checked_sub(1) else { return Ok(plan) };
        let at: Vec<u32> = batch.targets().iter().map(|target| target.at).collect();
        let at = match plan.split() {
            Some(split) => split.target_indices(&at),
            None => at,
        };
        plan.with_output_tokens(last, &at, self.device(), batch.target_sequences())
    }

    /// What [`Base::plan`] is for sequences whose keys are in a cache; see [`crate::cached_decoder`]. `sources` are the
    /// numbers of their tokens that an encoder reads.
    pub(crate) fn cached_plan(
        &self,
        sequences: SequenceBatch,
        (keys, sources): (Vec<Vec<Range<usize>>>, &[usize]),
        cache: KvCache,
    ) -> ForwardPlan {
        match self.config().encoder {
            Some(encoder) => {
                let split = SourceTarget::cached(encoder.layers, &sequences, (&keys, sources));
                ForwardPlan::cached(sequences, keys, cache, &self.ropes).with_split(split)
            }
            None => ForwardPlan::cached(sequences, keys, cache, &self.ropes),
        }
    }

    /// The embeddings of `ids`: `[tokens, hidden]`, in f32 like everything computed from them.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.embed_patched(ids, &SequenceBatch::default(), &Patches::none())
    }

    /// The same for tokens of `sequences`, with the patches of the embedding, which add to the rows of its weight.
    pub fn embed_patched(&self, ids: &[u32], sequences: &SequenceBatch, patches: &Patches) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config().vocabulary) {
            bail!("token {id} is outside the base's vocabulary of {}", self.config().vocabulary);
        }
        let h = match &self.embedding {
            Weight::Tensor(weight) => {
                weight.index_select(&Tensor::from_slice(ids, ids.len(), self.device())?, 0)?.to_dtype(DType::F32)?
            }
            Weight::Mapped(weight) => {
                let d = self.config().hidden;
                let mut h = vec![0.0; ids.len() * d];
                ids.iter().zip(h.chunks_exact_mut(d)).for_each(|(&id, row)| weight.copy_row(id as usize, row));
                Tensor::from_vec(h, (ids.len(), d), self.device())?
            }
        };
        let mut out = Outputs::new(h);
        patches.embedding().iter().try_for_each(|patch| patch.add(ids, sequences, &mut out))?;
        let h = out.into_tensor();
        if self.config().scales.embedding == 1.0 { Ok(h) } else { h * self.config().scales.embedding }
    }

    /// `h`, `[tokens, hidden]`, after layer `index`, in candle's graph.
    pub fn layer(&self, index: usize, h: &Tensor, plan: &ForwardPlan, patches: &Patches) -> Result<Tensor> {
        self.layers[index].forward(h, &mut LayerContext::new(index, self.layers[index].first_site(), plan, patches))
    }

    /// A forward whose layers are recorded on tapes instead of in candle's graph: for a frozen base on the CPU, and
    /// patches with a [site op](lorakit_lora::Patch::site_op).
    pub fn taped<'a>(&'a self, plan: &'a ForwardPlan, patches: &'a Patches) -> TapedForward<'a> {
        TapedForward { base: self, plan, patches }
    }

    /// The norm after the last layer.
    pub fn final_norm(&self, h: &Tensor) -> Result<Tensor> {
        self.final_norm.forward(h)
    }

    /// `ids` through all layers, before the final norm: `[tokens, hidden]`. Not differentiable: a layer's graph is dropped
    /// before the next layer.
    pub fn hidden_states(&self, ids: &[u32], plan: &ForwardPlan, patches: &Patches) -> Result<Tensor> {
        let layer = |h: Tensor, index| Ok(self.layer(index, &h, plan, patches)?.detach());
        (0..self.layers.len()).try_fold(self.embed_patched(ids, plan.sequences(), patches)?.detach(), layer)
    }

    /// The logits of every token, `[tokens, vocabulary]`. Not differentiable.
    pub fn logits(&self, ids: &[u32], sequences: SequenceBatch, patches: &Patches) -> Result<Tensor> {
        let h = self.hidden_states(ids, &self.plan(sequences.clone()), patches)?;
        self.lm_head().logits(&self.final_norm(&h)?, HeadPatch::of(patches, &sequences))
    }

    /// The negative log-likelihood of every target, `[targets]`, in nats. Not differentiable.
    pub fn nll(&self, batch: &TokenBatch, patches: &Patches) -> Result<Tensor> {
        self.nll_at(batch, patches, TokenPrecision::Exact)
    }

    /// The same where all tokens have this precision.
    pub(crate) fn nll_at(&self, batch: &TokenBatch, patches: &Patches, precision: TokenPrecision) -> Result<Tensor> {
        let plan = self.plan(batch.sequences()).with_precision(precision);
        let h = self.hidden_states(batch.ids(), &plan, patches)?;
        self.nll_of(&batch.target_states(&h)?, (batch, patches), precision)
    }

    /// The same for patches that look at one token at a time: after the attention of the last layer, only the tokens that
    /// predict targets are computed.
    pub fn nll_by_token(&self, batch: &TokenBatch, patches: &Patches) -> Result<Tensor> {
        let h = self.hidden_states(batch.ids(), &self.plan_for_targets(batch)?, patches)?;
        self.nll_of(&h, (batch, patches), TokenPrecision::Exact)
    }

    /// The negative log-likelihood of the targets that `h`, `[targets, hidden]`, predicts.
    fn nll_of(
        &self,
        h: &Tensor,
        (batch, patches): (&TokenBatch, &Patches),
        precision: TokenPrecision,
    ) -> Result<Tensor> {
        let sequences = batch.target_sequences();
        let patch = HeadPatch::of(patches, &sequences);
        self.lm_head().nll_at(&self.final_norm(h)?, &batch.target_ids(), patch, precision)
    }
}

/// The layers of a forward, each recorded on a tape; see [`Base::taped`].
pub struct TapedForward<'a> {
    base: &'a Base,
    plan: &'a ForwardPlan,
    patches: &'a Patches,
}

impl TapedForward<'_> {
    /// `h`, `[tokens, hidden]`, after layer `index`, with the tape of its backward; `needs_gradient` says whether the
    /// backward is to return the gradient of `h`.
    pub fn layer(&self, index: usize, h: &Tensor, needs_gradient: bool) -> Result<(Tensor, Tape)> {
        let mut tape = Tape::new(h, needs_gradient);
        let context = LayerContext::new(index, self.base.layers[index].first_site(), self.plan, self.patches);
        let y = self.base.layers[index].forward(h, &mut context.on(&mut tape))?;
        Ok((y, tape))
    }
}
