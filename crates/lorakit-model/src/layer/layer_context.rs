//! The ops of one layer's forward, in candle's graph or recorded on a tape.

use crate::attention::dispatch::{CrossAttention, SelfAttention};
use crate::attention::distance_bias::DistanceBias;
use crate::attention::heads::AttentionHeads;
use crate::forward_plan::ForwardPlan;
use crate::layer::activation::Activation;
use crate::layer::linear::FusedLinear;
use crate::layer::norm::Norm;
use crate::layer::qk_norm::QkNorm;
use crate::layer::query_scale::QueryScaleOp;
use crate::layer::residual_sum::{sum, untracked_sum};
use crate::layer::row_ranges::RowRanges;
use crate::layer::tape::Tape;
use candle_core::{Result, Tensor, bail};
use lorakit_lora::kernels::cpu_tensor;
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};

/// One layer's forward: an architecture calls its methods in order, and each enters the graph or the tape.
pub(crate) struct LayerContext<'a> {
    layer: usize,
    plan: &'a ForwardPlan,
    patches: &'a Patches,
    /// The next site, by its index within the base.
    site: usize,
    attended: bool,
    tape: Option<&'a mut Tape>,
}

impl<'a> LayerContext<'a> {
    /// Layer `layer`, whose first site is `site`, in candle's graph if there is one.
    pub(crate) fn new(layer: usize, site: usize, plan: &'a ForwardPlan, patches: &'a Patches) -> Self {
        Self { layer, plan, patches, site, attended: false, tape: None }
    }

    /// The same, recorded on `tape`.
    pub(crate) fn on(self, tape: &'a mut Tape) -> Self {
        Self { tape: Some(tape), ..self }
    }

    /// The rows of `h`, `[tokens, hidden]`, that the layer changes.
    pub(crate) fn layer_input(&mut self, h: &Tensor) -> Result<Tensor> {
        match self.plan.split() {
            Some(split) => self.rows(&split.stack(self.layer).rows, h),
            None => Ok(h.clone()),
        }
    }

    /// The layer's output of its input `h`, `[tokens, hidden]`, whose rows it has changed into `y`; of the last layer, that
    /// of the tokens whose output is wanted.
    pub(crate) fn layer_output(&mut self, h: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(split) = self.plan.split() else { return Ok(y) };
        if self.plan.output_indices(self.layer).is_some() {
            return self.selected(&y);
        }
        let rows = &split.stack(self.layer).rows;
        match &mut self.tape {
            Some(tape) => tape.apply_pair(Box::new(rows.ops().1), [h, &y]),
            None => rows.replaced(h, &y),
        }
    }

    /// The encoder's output, `[source tokens, hidden]`, within a layer's input.
    pub(crate) fn memory(&mut self, h: &Tensor) -> Result<Tensor> {
        match self.plan.split() {
            Some(split) => self.rows(&split.source.rows, h),
            None => bail!("the output of an encoder in a base without one"),
        }
    }

    fn rows(&mut self, rows: &RowRanges, h: &Tensor) -> Result<Tensor> {
        match &mut self.tape {
            Some(tape) => tape.apply(Box::new(rows.ops().0), h),
            None => rows.of(h),
        }
    }

    /// The norm of `x`, `[tokens, d]`.
    pub(crate) fn norm(&mut self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        let y = norm.forward(x)?;
        if let Some(tape) = &mut self.tape {
            let (norm, at) = (norm.clone(), x.clone());
            tape.record(x, &y, move |dy| norm.input_gradient(&at, dy));
        }
        Ok(y)
    }

    /// The next site: its frozen weights with the patch in it.
    pub(crate) fn site(&mut self, linear: &FusedLinear, x: &Tensor) -> Result<Tensor> {
        let batch = match self.attended {
            true => self.plan.output_sequences(self.layer),
            false => self.plan.sequences_of(self.layer),
        };
        self.site_of(linear, x, batch)
    }

    /// The next site, whose input `x` has the tokens of `batch`.
    fn site_of(&mut self, linear: &FusedLinear, x: &Tensor, batch: &SequenceBatch) -> Result<Tensor> {
        let patch = self.patches.at(self.site);
        self.site += 1;
        if let Some(tape) = &mut self.tape {
            return taped_site(tape, linear, patch, x, batch);
        }
        let product = || linear.forward_at(x, self.plan.precision());
        let Some(patch) = patch else { return product() };
        // A product of one token is bound by memory and shared row by row: one thread reads the experts meanwhile.
        let (y, addition) = match x.dim(0)? == 1 && x.device().is_cpu() {
            true => rayon::join(product, || patch.begin(x, batch)),
            false => (product(), patch.begin(x, batch)),
        };
        let mut out = Outputs::new(y?);
        addition?(&mut out)?;
        Ok(out.into_tensor())
    }

    /// `qkv`, `[tokens, fused width]`, with its queries and keys normed.
    pub(crate) fn qk_norm(&mut self, norm: &QkNorm, heads: AttentionHeads, qkv: &Tensor) -> Result<Tensor> {
        match &mut self.tape {
            Some(tape) => match norm.op(heads)? {
                Some(op) => tape.apply(Box::new(op), qkv),
                None => bail!("a tape needs frozen weights on the CPU"),
            },
            None => norm.forward(heads, qkv),
        }
    }

    /// The attention of `qkv`, `[tokens, fused width]`, as `[tokens, queries * features]`. From here on there are only the
    /// tokens whose output is wanted.
    pub(crate) fn attend(
        &mut self,
        heads: AttentionHeads,
        bias: Option<&DistanceBias>,
        qkv: &Tensor,
    ) -> Result<Tensor> {
        let qkv = &self.with_query_scales(heads, qkv)?;
        let wanted = self.plan.wanted_tokens(self.layer);
        let attention = || SelfAttention::new(heads, self.plan.layout(self.layer)).of_wanted(wanted);
        let y = match (&mut self.tape, bias) {
            (Some(tape), None) => tape.apply(Box::new(attention()), qkv)?,
            (Some(tape), Some(bias)) => tape.apply_pair(Box::new(attention()), [qkv, &bias.table()?])?,
            (None, bias) => self.plan.attend(self.layer, heads, bias, qkv)?,
        };
        // The decoder of an encoder-decoder reads its target's tokens alone, all of which are wanted.
        self.attended = self.plan.split().is_none();
        self.output_tokens(&y)
    }

    /// `qkv` where the queries of far positions are larger, in bases that have it so.
    fn with_query_scales(&mut self, heads: AttentionHeads, qkv: &Tensor) -> Result<Tensor> {
        let Some(factors) = self.plan.query_scales() else { return Ok(qkv.clone()) };
        let op = QueryScaleOp { width: heads.queries * heads.features, factors: factors.clone() };
        match &mut self.tape {
            Some(tape) => tape.apply(Box::new(op), qkv),
            None => op.apply(qkv),
        }
    }

    /// The next site, of keys and values of the encoder's output `memory`, `[source tokens, hidden]`; a cache keeps them.
    /// None if no source is among the tokens.
    pub(crate) fn keys_values(&mut self, linear: &FusedLinear, memory: &Tensor) -> Result<Option<Tensor>> {
        let plan = self.plan;
        let Some(split) = plan.split().filter(|_| memory.dims()[0] > 0) else {
            self.skip_sites(1);
            return Ok(None);
        };
        let kv = self.site_of(linear, memory, &split.source.sequences)?;
        plan.cache_memory(self.layer, &kv)?;
        Ok(Some(kv))
    }

    /// Leaves out the next sites.
    pub(crate) fn skip_sites(&mut self, count: usize) {
        self.site += count;
    }

    /// The attention of the queries `q`, `[target tokens, queries * features]`, to [`LayerContext::keys_values`].
    pub(crate) fn attend_across(&mut self, heads: AttentionHeads, q: &Tensor, kv: Option<&Tensor>) -> Result<Tensor> {
        match (&mut self.tape, kv) {
            (Some(tape), Some(kv)) => {
                tape.apply_pair(Box::new(CrossAttention { heads, segments: self.plan.across()?.clone() }), [q, kv])
            }
            (_, kv) => self.plan.attend_across(self.layer, heads, q, kv),
        }
    }

    /// The rows of `x`, `[tokens, d]`, whose output is wanted. An encoder-decoder selects them where a layer ends.
    pub(crate) fn output_tokens(&mut self, x: &Tensor) -> Result<Tensor> {
        if self.plan.split().is_some() { Ok(x.clone()) } else { self.selected(x) }
    }

    fn selected(&mut self, x: &Tensor) -> Result<Tensor> {
        let Some(indices) = self.plan.output_indices(self.layer) else { return Ok(x.clone()) };
        let y = x.index_select(indices, 0)?;
        if let Some(tape) = &mut self.tape {
            let (indices, shape) = (indices.clone(), x.shape().clone());
            tape.record(x, &y, move |dy| Tensor::zeros(shape, dy.dtype(), dy.device())?.index_add(&indices, dy, 0));
        }
        Ok(y)
    }

    /// The activation of `x`.
    pub(crate) fn activation(&mut self, activation: Activation, x: &Tensor) -> Result<Tensor> {
        match &mut self.tape {
            Some(tape) => tape.apply(activation.op(), x),
            None => activation.forward(x),
        }
    }

    /// `a + factor b`.
    pub(crate) fn sum(&mut self, a: &Tensor, b: &Tensor, factor: f64) -> Result<Tensor> {
        let Some(tape) = &mut self.tape else { return sum(a, b, factor) };
        let y = untracked_sum(a, b, factor)?;
        tape.record_sum([a, b], factor, &y);
        Ok(y)
    }
}

/// A site recorded on a tape.
fn taped_site(
    tape: &mut Tape,
    linear: &FusedLinear,
    patch: Option<&dyn Patch>,
    x: &Tensor,
    batch: &SequenceBatch,
) -> Result<Tensor> {
    let Some(frozen) = linear.frozen() else { bail!("a tape needs frozen weights on the CPU") };
    let Some(patch) = patch else {
        // Not by `Tape::apply`, which would hold `x`.
        let (y, shape) = (linear.forward(x)?, x.shape().clone());
        tape.record(x, &y, move |dy| {
            let dx = cpu_tensor::with_values(dy, "frozen-linear", |dy| frozen.backward(dy))?;
            Tensor::from_vec(dx, shape, dy.device())
        });
        return Ok(y);
    };
    let Some(op) = patch.site_op(frozen, batch)? else {
        bail!("a patch whose gradients are in candle's graph cannot be recorded on a tape");
    };
    tape.apply_trained(op, x)
}
