//! What a layer is made with: its ops go through here, into candle's graph or onto a tape.

use crate::attention::{Heads, self_attention_backward};
use crate::gate::Gate;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::plan::Plan;
use crate::tape::Tape;
use candle_core::{Result, Tensor, bail};
use lorakit_lora::{Outputs, Patch, Patches, Rows, cpu};

/// One layer on its way.
pub(crate) struct Flow<'a> {
    layer: usize,
    plan: &'a Plan,
    patches: &'a Patches,
    /// The site that comes next, by its number within the base.
    site: usize,
    attended: bool,
    tape: Option<&'a mut Tape>,
}

impl<'a> Flow<'a> {
    /// Layer `layer`, whose first site is `site`, in candle's graph where there is one.
    pub(crate) fn new(layer: usize, site: usize, plan: &'a Plan, patches: &'a Patches) -> Self {
        Self { layer, plan, patches, site, attended: false, tape: None }
    }

    /// The same, written down on `tape`.
    pub(crate) fn on(self, tape: &'a mut Tape) -> Self {
        Self { tape: Some(tape), ..self }
    }

    /// The norm of `x`, `[tokens, d]`.
    pub(crate) fn norm(&mut self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        let y = norm.forward(x)?;
        if let Some(tape) = &mut self.tape {
            let (norm, at) = (norm.clone(), x.clone());
            tape.step(x, &y, move |dy| norm.backward(&at, dy));
        }
        Ok(y)
    }

    /// The next site: its frozen weights with the patch that sits in it.
    pub(crate) fn site(&mut self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let patch = self.patches.at(self.site);
        self.site += 1;
        let rows = if self.attended { self.plan.wanted_rows(self.layer) } else { self.plan.rows() };
        if let Some(tape) = &mut self.tape {
            return taped_site(tape, linear, patch, x, rows);
        }
        let mut out = Outputs::new(linear.forward(x)?);
        if let Some(patch) = patch {
            patch.add(x, rows, &mut out)?;
        }
        Ok(out.into_tensor())
    }

    /// The attention of `qkv`, `[tokens, fused width]`, as `[tokens, queries * features]`. From here on there are no
    /// more tokens than the output is wanted of.
    pub(crate) fn attend(&mut self, heads: Heads, qkv: &Tensor) -> Result<Tensor> {
        let y = self.plan.attend(self.layer, heads, qkv)?;
        if let Some(tape) = &mut self.tape {
            let (packing, at) = (self.plan.packing().clone(), qkv.clone());
            tape.step(qkv, &y, move |dy| self_attention_backward(&at, heads, &packing, dy));
        }
        self.attended = true;
        self.wanted(&y)
    }

    /// What of `x`, `[tokens, d]`, goes on after the attention.
    pub(crate) fn wanted(&mut self, x: &Tensor) -> Result<Tensor> {
        let Some(places) = self.plan.wanted_places(self.layer) else { return Ok(x.clone()) };
        let y = x.index_select(places, 0)?;
        if let Some(tape) = &mut self.tape {
            let (places, shape) = (places.clone(), x.shape().clone());
            tape.step(x, &y, move |dy| Tensor::zeros(shape, dy.dtype(), dy.device())?.index_add(&places, dy, 0));
        }
        Ok(y)
    }

    /// The activation of `x`.
    pub(crate) fn gate(&mut self, gate: Gate, x: &Tensor) -> Result<Tensor> {
        let y = gate.forward(x)?;
        if let Some(tape) = &mut self.tape {
            let at = x.clone();
            tape.step(x, &y, move |dy| gate.backward(&at, dy));
        }
        Ok(y)
    }

    /// `a + b`.
    pub(crate) fn sum(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let y = (a + b)?;
        if let Some(tape) = &mut self.tape {
            tape.sum([a, b], &y);
        }
        Ok(y)
    }
}

/// A site written down on a tape.
fn taped_site(tape: &mut Tape, linear: &Linear, patch: Option<&dyn Patch>, x: &Tensor, rows: &Rows) -> Result<Tensor> {
    let Some(frozen) = linear.frozen() else { bail!("weights that train, or are not on a CPU, do not go onto a tape") };
    let Some(patch) = patch else {
        let (y, shape) = (linear.forward(x)?, x.shape().clone());
        tape.step(x, &y, move |dy| {
            let dx = cpu::with_values(dy, "frozen-linear", |dy| frozen.backward(dy))?;
            Tensor::from_vec(dx, shape, dy.device())
        });
        return Ok(y);
    };
    let Some(site) = patch.adapted(frozen, rows)? else {
        bail!("a patch whose gradients are in candle's graph does not go onto a tape");
    };
    let y = site.forward(x)?;
    tape.site(x, &y, site);
    Ok(y)
}
