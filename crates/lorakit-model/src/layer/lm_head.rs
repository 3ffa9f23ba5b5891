//! The matrix that makes logits, and the negative log-likelihood of target tokens, with logits only where a token carries
//! loss.

use crate::layer::linear::{gradient_product, product};
use crate::layer::logit_scale::LogitScale;
use crate::vector_math::{exp, largest, total};
use crate::weights::matrix_products::forward_side_by_side;
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::token_precision::TokenPrecision;
use crate::weights::weight::Weight;
use candle_core::{DType, Result, Tensor, bail};
use lorakit_lora::kernels::cpu_tensor;
use lorakit_lora::kernels::gemm::{Destination, MatrixRef};
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use lorakit_lora::kernels::vjp::with_vjp;
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use rayon::prelude::*;

/// The matrix that turns hidden states into logits, with its bias.
#[derive(Clone)]
pub struct LmHead {
    weight: Weight,
    bias: Option<Tensor>,
    vocabulary: usize,
    scale: LogitScale,
}

/// A patch of the head, with the sequences whose tokens' hidden states are given.
#[derive(Clone, Copy)]
pub struct HeadPatch<'a> {
    /// Adds to the logits.
    pub patch: &'a dyn Patch,
    /// Whose tokens the hidden states are, in their order.
    pub batch: &'a SequenceBatch,
}

impl<'a> HeadPatch<'a> {
    /// The head's patch among `patches`, if there is one.
    pub fn of(patches: &'a Patches, batch: &'a SequenceBatch) -> Option<Self> {
        patches.head().map(|patch| Self { patch, batch })
    }
}

/// Logits held at a time, in values: 32 MiB.
const CHUNK: usize = 8 << 20;

/// The fewest tokens of a chunk where the head trains: each chunk adds to the gradient of all its rows.
const TRAINED_TOKENS: usize = 256;

/// What the loss is called in errors.
const NAME: &str = "target-nll";

impl LmHead {
    /// A head of `vocabulary` rows.
    pub fn new(weight: Weight, bias: Option<Tensor>, vocabulary: usize) -> Self {
        Self { weight, bias, vocabulary, scale: LogitScale::NONE }
    }

    /// The same with scaled logits.
    pub fn with_scale(self, scale: LogitScale) -> Self {
        Self { scale, ..self }
    }

    /// The bytes of logits that the loss of `tokens` targets holds at a time over a frozen weight.
    pub fn logit_bytes(&self, tokens: usize) -> u64 {
        (size_of::<f32>() * (CHUNK / self.vocabulary).clamp(1, tokens.max(1)) * self.vocabulary) as u64
    }

    /// The logits, `[tokens, vocabulary]`, of hidden states `h`, `[tokens, d]`. Differentiable only where the weight is a
    /// tensor.
    pub fn logits(&self, h: &Tensor, patch: Option<HeadPatch>) -> Result<Tensor> {
        self.logits_at(h, patch, TokenPrecision::Exact)
    }

    /// The same of hidden states of this precision.
    pub(crate) fn logits_at(&self, h: &Tensor, patch: Option<HeadPatch>, precision: TokenPrecision) -> Result<Tensor> {
        let h = h.contiguous()?;
        let logits = match &self.weight {
            Weight::Tensor(weight) => product(&h, &weight.t()?)?,
            Weight::Mapped(weight) => {
                let ((tokens, d), rows) = (h.dims2()?, weight.rows());
                if d != weight.columns() {
                    bail!("{tokens} x {d} hidden states for a head of {} features", weight.columns());
                }
                let y = cpu_tensor::with_values(&h, "logits", |h| {
                    let write = |y: &mut [f32]| forward_side_by_side(&[weight], h, y, precision);
                    // SAFETY: the product overwrites all values.
                    unsafe { uninit_vec(tokens * rows, write) }
                })?;
                Tensor::from_vec(y, (tokens, rows), h.device())?
            }
        };
        let logits = match &self.bias {
            Some(bias) => logits.broadcast_add(bias)?,
            None => logits,
        };
        let Some(HeadPatch { patch, batch }) = patch else { return self.scale.composed(logits) };
        let mut out = Outputs::new(logits);
        patch.add(&h, batch, &mut out)?;
        self.scale.composed(out.into_tensor())
    }

    /// Whether tokens of 8 bits are multiplied with its weight.
    pub(crate) fn has_integer_products(&self) -> bool {
        self.weight.has_integer_products()
    }

    /// `-log softmax(logits of h[i])[targets[i]]`, `[n]`, of hidden states `h`, `[n, d]`. Differentiable in `h` and in a
    /// weight that trains. A patch is called once per chunk of tokens, with the sequences of that chunk.
    ///
    /// # Errors
    /// If a target is outside the vocabulary, or a head with a patch is to be differentiated.
    pub fn nll(&self, h: &Tensor, targets: &[u32], patch: Option<HeadPatch>) -> Result<Tensor> {
        self.nll_at(h, targets, patch, TokenPrecision::Exact)
    }

    /// The same of hidden states of this precision. The gradient is always the exact one.
    ///
    /// # Errors
    /// As [`LmHead::nll`].
    pub fn nll_at(
        &self,
        h: &Tensor,
        targets: &[u32],
        patch: Option<HeadPatch>,
        precision: TokenPrecision,
    ) -> Result<Tensor> {
        if let Some(id) = targets.iter().find(|&&id| id as usize >= self.vocabulary) {
            bail!("target token {id} is outside the vocabulary of {}", self.vocabulary);
        }
        match (&self.weight, patch) {
            (_, Some(patch)) => self.patched_nll(h, targets, patch, precision),
            (Weight::Mapped(weight), None) => self.mapped_nll(h, targets, weight, precision),
            (Weight::Tensor(weight), None) => self.composed_nll(h, targets, weight),
        }
    }

    /// The loss of a head with a patch, to be read and not differentiated.
    fn patched_nll(
        &self,
        h: &Tensor,
        targets: &[u32],
        HeadPatch { patch, batch }: HeadPatch,
        precision: TokenPrecision,
    ) -> Result<Tensor> {
        if h.track_op() {
            bail!("the loss of a patched head is not differentiable");
        }
        let index = Tensor::from_slice(targets, (targets.len(), 1), h.device())?;
        let tokens = (CHUNK / self.vocabulary).max(1);
        let mut losses = vec![Tensor::zeros((0, 1), DType::F32, h.device())?];
        for start in (0..targets.len()).step_by(tokens) {
            let count = tokens.min(targets.len() - start);
            let chunk = batch.narrow(start..start + count);
            let patch = Some(HeadPatch { patch, batch: &chunk });
            let logits = self.logits_at(&h.narrow(0, start, count)?, patch, precision)?;
            losses.push(log_losses(&logits, &index.narrow(0, start, count)?.contiguous()?)?.detach());
        }
        Tensor::cat(&losses, 0)?.squeeze(1)
    }

    /// The loss over a mapped weight. The forward already makes each token's gradient `(softmax - onehot) W`, so that
    /// logits are made once and never kept: `[chunk, vocabulary]` is all that is ever held.
    fn mapped_nll(
        &self,
        h: &Tensor,
        targets: &[u32],
        weight: &MmapMatrix,
        precision: TokenPrecision,
    ) -> Result<Tensor> {
        let (n, d) = h.dims2()?;
        if n != targets.len() || d != weight.columns() {
            bail!("{n} x {d} hidden states for {} targets of a head of {} features", targets.len(), weight.columns());
        }
        let bias = self.bias.as_ref().map(|b| b.to_vec1::<f32>()).transpose()?;
        let nll = Nll { weight, precision, bias, scale: self.scale, targets, wanted: h.track_op() };
        let (losses, dh) = cpu_tensor::with_values(&h.detach().contiguous()?, NAME, |h| nll.forward(h))?;
        let losses = Tensor::from_vec(losses, n, h.device())?;
        if !nll.wanted {
            return Ok(losses);
        }
        with_hidden_gradients(h, losses, Tensor::from_vec(dh, (n, d), h.device())?)
    }

    /// The same made of candle's own ops, for weights that train or live on a device.
    fn composed_nll(&self, h: &Tensor, targets: &[u32], weight: &Tensor) -> Result<Tensor> {
        let index = Tensor::from_slice(targets, (targets.len(), 1), h.device())?;
        if weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op) {
            if targets.len() > self.trained_chunk() {
                return self.trained_nll(h, &index, weight);
            }
            return log_losses(&self.logits(h, None)?, &index)?.squeeze(1);
        }
        let (wanted, at) = (h.track_op(), h.detach());
        let tokens = (CHUNK / self.vocabulary).max(1);
        let (mut losses, mut dh) = (Vec::new(), Vec::new());
        for start in (0..targets.len()).step_by(tokens) {
            let count = tokens.min(targets.len() - start);
            let logits = self.logits(&at.narrow(0, start, count)?, None)?;
            let index = index.narrow(0, start, count)?.contiguous()?;
            let loss = log_losses(&logits, &index)?;
            if wanted {
                dh.push(gradient_product(&self.logit_gradient(&logits, &loss, &index)?, weight)?);
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
        with_hidden_gradients(h, losses, Tensor::cat(&dh, 0)?)
    }

    /// The gradient of each loss by the head's logits before they are scaled, `softmax - onehot`.
    fn logit_gradient(&self, logits: &Tensor, loss: &Tensor, index: &Tensor) -> Result<Tensor> {
        // exp(logits - logsumexp), where logsumexp = loss + the target's logit.
        let total = (loss + logits.gather(index, 1)?)?;
        let softmax = logits.broadcast_sub(&total)?.exp()?;
        self.scale.composed_gradient(logits, softmax.scatter_add(index, &loss.ones_like()?.neg()?, 1)?)
    }

    /// The tokens whose logits are held at a time where the head trains.
    fn trained_chunk(&self) -> usize {
        (CHUNK / self.vocabulary).max(TRAINED_TOKENS)
    }

    /// The loss over a weight that trains, for so many tokens that their logits are not held at once: forward and backward
    /// make those of some tokens at a time.
    fn trained_nll(&self, h: &Tensor, index: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let head = Self {
            weight: Weight::Tensor(weight.detach()),
            bias: self.bias.as_ref().map(Tensor::detach),
            ..self.clone()
        };
        let chunks = ChunkedLoss { head, h: h.detach(), index: index.clone() };
        let zeros = Tensor::zeros(h.dim(0)?, DType::F32, h.device())?;
        let mut losses = with_vjp(h, chunks.losses()?, chunks.backward(GradientOf::Hidden))?;
        // Functions of the weight and the bias that are zero: they only have a gradient.
        losses = (losses + with_vjp(weight, zeros.clone(), chunks.backward(GradientOf::Weight))?)?;
        match &self.bias {
            Some(bias) => losses + with_vjp(bias, zeros, chunks.backward(GradientOf::Bias))?,
            None => Ok(losses),
        }
    }
}

/// What a gradient of [`ChunkedLoss`] is of.
#[derive(Clone, Copy)]
enum GradientOf {
    Hidden,
    Weight,
    Bias,
}

/// A loss whose logits are made for some tokens at a time.
#[derive(Clone)]
struct ChunkedLoss {
    head: LmHead,
    /// `[n, d]`.
    h: Tensor,
    /// The targets, `[n, 1]`.
    index: Tensor,
}

impl ChunkedLoss {
    /// The hidden states, targets, logits and losses of each chunk of tokens.
    fn chunks(&self) -> impl Iterator<Item = Result<[Tensor; 4]>> + '_ {
        let tokens = self.head.trained_chunk();
        let all = self.index.elem_count();
        (0..all).step_by(tokens).map(move |start| {
            let count = tokens.min(all - start);
            let (h, index) = (self.h.narrow(0, start, count)?, self.index.narrow(0, start, count)?.contiguous()?);
            let logits = self.head.logits(&h, None)?;
            let losses = log_losses(&logits, &index)?;
            Ok([h, index, logits, losses])
        })
    }

    /// The losses, `[n]`.
    fn losses(&self) -> Result<Tensor> {
        let losses: Vec<Tensor> = self.chunks().map(|chunk| chunk.map(|[.., losses]| losses)).collect::<Result<_>>()?;
        Tensor::cat(&losses, 0)?.squeeze(1)
    }

    /// The gradient of what `of` says from that of the losses, `[n]`.
    fn backward(&self, of: GradientOf) -> impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static {
        let chunks = self.clone();
        move |dy| {
            let (mut start, mut parts, mut sum) = (0, Vec::new(), None);
            for chunk in chunks.chunks() {
                let [h, index, logits, losses] = chunk?;
                let dy = dy.narrow(0, start, index.dim(0)?)?.unsqueeze(1)?;
                start += index.dim(0)?;
                let gradient = chunks.head.logit_gradient(&logits, &losses, &index)?.broadcast_mul(&dy)?;
                let part = match of {
                    GradientOf::Hidden => {
                        parts.push(gradient.matmul(&chunks.head.weight.tensor(&h)?)?);
                        continue;
                    }
                    GradientOf::Weight => gradient.t()?.matmul(&h)?,
                    GradientOf::Bias => gradient.sum(0)?,
                };
                sum = Some(sum.map_or_else(|| Ok(part.clone()), |sum: Tensor| sum + &part)?);
            }
            sum.map_or_else(|| Tensor::cat(&parts, 0), Ok)
        }
    }
}

/// `losses`, `[n]`, as a function of `h`, `[n, d]`, from `dh[i] = d losses[i] / d h[i]`.
fn with_hidden_gradients(h: &Tensor, losses: Tensor, dh: Tensor) -> Result<Tensor> {
    with_vjp(h, losses, move |dy| dh.broadcast_mul(&dy.unsqueeze(1)?))
}

/// `-log softmax(logits)[index]` of each row, `[n, 1]`.
fn log_losses(logits: &Tensor, index: &Tensor) -> Result<Tensor> {
    let max = logits.max_keepdim(1)?.detach();
    let total = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()?;
    (total + max)? - logits.gather(index, 1)?
}

/// The loss over a mapped weight on a CPU.
struct Nll<'a> {
    weight: &'a MmapMatrix,
    precision: TokenPrecision,
    bias: Option<Vec<f32>>,
    scale: LogitScale,
    targets: &'a [u32],
    /// Whether the gradient of the hidden states is wanted.
    wanted: bool,
}

impl Nll<'_> {
    /// The losses, `[n]`, of hidden states `h`, `[n, d]`, and, if wanted, `d loss[i] / d h[i]`, `[n, d]`.
    fn forward(&self, h: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (n, d, vocabulary) = (self.targets.len(), self.weight.columns(), self.weight.rows());
        let tokens = (CHUNK / vocabulary).clamp(1, n.max(1));
        let mut losses = vec![0.0; n];
        let mut dh = vec![0.0; if self.wanted { n * d } else { 0 }];
        for start in (0..n).step_by(tokens) {
            let end = (start + tokens).min(n);
            let h = &h[start * d..end * d];
            let product = |y: &mut [f32]| forward_side_by_side(&[self.weight], h, y, self.precision);
            // SAFETY: the product overwrites all values.
            let mut logits = unsafe { uninit_vec((end - start) * vocabulary, product) };
            self.chunk(&mut logits, &self.targets[start..end], &mut losses[start..end]);
            if self.wanted {
                let dh = &mut dh[start * d..end * d];
                let dlogits = MatrixRef::new(&logits, end - start, vocabulary, vocabulary);
                self.weight.backward(dlogits, dh, Destination::Overwrite);
            }
        }
        (losses, dh)
    }

    /// Losses of some tokens; their logits become `softmax - onehot` if the gradient is wanted.
    fn chunk(&self, logits: &mut [f32], targets: &[u32], losses: &mut [f32]) {
        let vocabulary = self.weight.rows();
        logits.par_chunks_mut(vocabulary).zip(targets.par_iter().zip(losses.par_iter_mut())).for_each(
            |(row, (&target, loss))| {
                *loss = simd::dispatch(TokenLoss { op: self, row, target: target as usize });
            },
        );
    }
}

/// The loss of one token; see [`Nll::chunk`].
struct TokenLoss<'a> {
    op: &'a Nll<'a>,
    row: &'a mut [f32],
    target: usize,
}

impl WithSimd for TokenLoss<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let Self { op, row, target } = self;
        if let Some(bias) = &op.bias {
            row.iter_mut().zip(bias).for_each(|(l, b)| *l += b);
        }
        op.scale.apply(simd, row);
        // The derivative of a cap is that at the capped logits, which the exponentials replace.
        let capped = if op.wanted && op.scale.soft_cap.is_some() { row.to_vec() } else { Vec::new() };
        let (max, chosen) = (largest(row), row[target]);
        row.iter_mut().for_each(|l| *l = exp(*l - max));
        let total = total(row);
        if op.wanted {
            let inverse = (1.0 / total) as f32;
            row.iter_mut().for_each(|l| *l *= inverse);
            row[target] -= 1.0;
            op.scale.gradient(&capped, row);
        }
        (total.ln() + f64::from(max) - f64::from(chosen)) as f32
    }
}
