//! The negative log-likelihood of target tokens, with logits only where a token carries loss.

use crate::linear::{gradient_product, product};
use crate::softmax::{exp, largest, total};
use crate::weight::{Mapped, Weight};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use lorakit_lora::cpu::{self, Loops};
use lorakit_lora::product::Destination;
use lorakit_lora::vjp::with_vjp;
use rayon::prelude::*;
use std::sync::{Arc, Mutex};

/// The matrix that turns hidden states into logits.
#[derive(Clone)]
pub struct Head {
    weight: Weight,
    bias: Option<Tensor>,
    vocabulary: usize,
}

/// Logits that are held at a time, in values: 32 MiB.
const CHUNK: usize = 8 << 20;

impl Head {
    /// A head of `vocabulary` rows.
    pub fn new(weight: Weight, bias: Option<Tensor>, vocabulary: usize) -> Self {
        Self { weight, bias, vocabulary }
    }

    /// The logits of hidden states `h`, `[tokens, d]`: `[tokens, vocabulary]`.
    pub fn logits(&self, h: &Tensor) -> Result<Tensor> {
        let logits = match &self.weight {
            Weight::Tensor(weight) => product(&h.contiguous()?, &weight.t()?)?,
            Weight::Mapped(weight) => h.contiguous()?.apply_op1_no_bwd(&Logits(weight.clone()))?,
        };
        match &self.bias {
            Some(bias) => logits.broadcast_add(bias),
            None => Ok(logits),
        }
    }

    /// `-log softmax(logits of h[i])[targets[i]]` for hidden states `[n, d]`: `[n]`. Differentiable.
    pub fn nll(&self, h: &Tensor, targets: &[u32]) -> Result<Tensor> {
        if let Some(id) = targets.iter().find(|&&id| id as usize >= self.vocabulary) {
            bail!("target token {id} is outside the vocabulary of {}", self.vocabulary);
        }
        match &self.weight {
            Weight::Mapped(weight) => {
                let bias = self.bias.as_ref().map(|b| b.to_vec1::<f32>()).transpose()?;
                let op = Nll {
                    weight: weight.clone(),
                    bias,
                    targets: targets.into(),
                    wanted: h.track_op(),
                    slopes: Mutex::new(None),
                };
                h.contiguous()?.apply_op1(op)
            }
            Weight::Tensor(weight) => self.plain_nll(h, targets, weight),
        }
    }

    /// The same by candle's own ops, for weights that train or live on a device.
    fn plain_nll(&self, h: &Tensor, targets: &[u32], weight: &Tensor) -> Result<Tensor> {
        let index = Tensor::from_slice(targets, (targets.len(), 1), h.device())?;
        if weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op) {
            return log_losses(&self.logits(h)?, &index)?.squeeze(1);
        }
        let (wanted, at) = (h.track_op(), h.detach());
        let tokens = (CHUNK / self.vocabulary).max(1);
        let (mut losses, mut slopes) = (Vec::new(), Vec::new());
        for start in (0..targets.len()).step_by(tokens) {
            let count = tokens.min(targets.len() - start);
            let logits = self.logits(&at.narrow(0, start, count)?)?;
            let index = index.narrow(0, start, count)?.contiguous()?;
            let loss = log_losses(&logits, &index)?;
            if wanted {
                // exp(logits - logsumexp), where logsumexp = loss + the target's logit.
                let total = (&loss + logits.gather(&index, 1)?)?;
                let softmax = logits.broadcast_sub(&total)?.exp()?;
                let slope = softmax.scatter_add(&index, &loss.ones_like()?.neg()?, 1)?;
                slopes.push(gradient_product(&slope, weight)?);
            }
            losses.push(loss);
        }
        if losses.is_empty() {
            return Tensor::zeros(0, DType::F32, h.device());
        }
        let losses = Tensor::cat(&losses, 0)?.squeeze(1)?;
        if !wanted {
            return Ok(losses);
        }
        let slopes = Tensor::cat(&slopes, 0)?;
        with_vjp(h, losses, move |dy| slopes.broadcast_mul(&dy.unsqueeze(1)?))
    }
}

/// `-log softmax(logits)[index]` of each row, `[n, 1]`.
fn log_losses(logits: &Tensor, index: &Tensor) -> Result<Tensor> {
    let max = logits.max_keepdim(1)?.detach();
    let total = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()?;
    (total + max)? - logits.gather(index, 1)?
}

struct Logits(Mapped);

impl CustomOp1 for Logits {
    fn name(&self) -> &'static str {
        "logits"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, _) = layout.shape().dims2()?;
        let rows = self.0.rows();
        let mut y = vec![0.0; tokens * rows];
        self.0.forward(cpu::values(h, layout, self.name())?, &mut y, rows, 0..rows);
        cpu::result(y, (tokens, rows))
    }
}

/// The loss as one op. Its forward already makes each token's gradient `(softmax - onehot) W`, so that the logits
/// are made once and never kept: `[chunk, vocabulary]` is all that is ever held.
struct Nll {
    weight: Mapped,
    bias: Option<Vec<f32>>,
    targets: Arc<[u32]>,
    /// Whether a gradient will be asked for.
    wanted: bool,
    /// `d nll[i] / d h[i]`, `[n, d]`.
    slopes: Mutex<Option<Vec<f32>>>,
}

impl Nll {
    /// Losses of some tokens; their logits become `softmax - onehot` where the gradient is wanted.
    fn chunk(&self, logits: &mut [f32], targets: &[u32], losses: &mut [f32]) {
        let vocabulary = self.weight.rows();
        logits.par_chunks_mut(vocabulary).zip(targets.par_iter().zip(losses.par_iter_mut())).for_each(
            |(row, (&target, loss))| {
                *loss = cpu::with_widest_vectors(Token { op: self, row, target: target as usize });
            },
        );
    }
}

/// The loss of one token; see [`Nll::chunk`].
struct Token<'a> {
    op: &'a Nll,
    row: &'a mut [f32],
    target: usize,
}

impl Loops for Token<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { op, row, target } = self;
        if let Some(bias) = &op.bias {
            row.iter_mut().zip(bias).for_each(|(l, b)| *l += b);
        }
        let (max, chosen) = (largest(row), row[target]);
        row.iter_mut().for_each(|l| *l = exp(*l - max));
        let total = total(row);
        if op.wanted {
            let inverse = (1.0 / total) as f32;
            row.iter_mut().for_each(|l| *l *= inverse);
            row[target] -= 1.0;
        }
        (total.ln() + f64::from(max) - f64::from(chosen)) as f32
    }
}

impl CustomOp1 for Nll {
    fn name(&self) -> &'static str {
        "target-nll"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, d) = layout.shape().dims2()?;
        if n != self.targets.len() || d != self.weight.columns() {
            bail!(
                "{n} x {d} hidden states for {} targets of a head of {} features",
                self.targets.len(),
                self.weight.columns()
            );
        }
        let h = cpu::values(h, layout, self.name())?;
        let vocabulary = self.weight.rows();
        let tokens = (CHUNK / vocabulary).clamp(1, n.max(1));
        let mut losses = vec![0.0; n];
        let mut slopes = vec![0.0; if self.wanted { n * d } else { 0 }];
        let mut logits = vec![0.0; tokens * vocabulary];
        for start in (0..n).step_by(tokens) {
            let end = (start + tokens).min(n);
            let logits = &mut logits[..(end - start) * vocabulary];
            self.weight.forward(&h[start * d..end * d], logits, vocabulary, 0..vocabulary);
            self.chunk(logits, &self.targets[start..end], &mut losses[start..end]);
            if self.wanted {
                self.weight.backward(
                    logits,
                    vocabulary,
                    0..vocabulary,
                    &mut slopes[start * d..end * d],
                    Destination::Overwrite,
                );
            }
        }
        if self.wanted
            && let Ok(mut kept) = self.slopes.lock()
        {
            *kept = Some(slopes);
        }
        cpu::result(losses, n)
    }

    fn bwd(&self, h: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let kept = self.slopes.lock().ok().and_then(|mut kept| kept.take());
        let Some(mut slopes) = kept else { bail!("the loss was differentiated twice") };
        let (_, d) = h.dims2()?;
        for (slope, g) in slopes.chunks_exact_mut(d).zip(dy.to_vec1::<f32>()?) {
            slope.iter_mut().for_each(|s| *s *= g);
        }
        Tensor::from_vec(slopes, h.shape(), h.device()).map(Some)
    }
}
