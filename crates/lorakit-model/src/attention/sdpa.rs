//! Scaled dot-product attention with a mask, forward and backward, made of candle's own ops.
//!
//! Subtracting one vector from all keys shifts each query's scores by a constant, which softmax ignores; one subtracted
//! from all values is added back to the output, since weights sum to one. Both means are subtracted before 16 bits round
//! the rest: what keys have in common may be larger than what tells them apart (Zhang et al. 2024,
//! <https://arxiv.org/abs/2410.02367>). Under a soft cap a shift of scores matters, and keys stay as they are.

use crate::attention::heads::AttentionHeads;
use crate::layer::soft_cap::{composed_derivative, composed_soft_cap};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

/// Queries of `n` rows with the keys and values that they attend to: one matrix per row and key head, in
/// [`AttentionHeads::products`]. The query heads that share a key head are stacked, so that no key is repeated.
pub(crate) struct Sdpa {
    heads: AttentionHeads,
    /// Scaled here, as there are fewer queries than scores: `[n keys, shared Q, features]`.
    q: Tensor,
    /// `[n keys, K, features]`, less their mean, except for keys under a soft cap.
    k: Tensor,
    v: Tensor,
    /// The mean of the values, in f32: `[n keys, 1, features]`.
    v_mean: Tensor,
    /// `[n, 1, Q, K]`.
    mask: Tensor,
}

/// The gradients of queries, keys and values, in the shapes given to [`Sdpa::new`].
pub(crate) struct SdpaGradients {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl Sdpa {
    /// `q`, `[n, Q, queries * features]`, `k` and `v`, `[n, K, keys * features]`, and the mask, `[n, 1, Q, K]`.
    pub(crate) fn new(heads: AttentionHeads, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Self> {
        let k = by_key_head(k, heads)?;
        let k = if heads.soft_cap.is_some() { k } else { centered(&k)?.0 };
        let (v, v_mean) = centered(&by_key_head(v, heads)?)?;
        Ok(Self {
            heads,
            q: by_key_head(&(q * heads.scale())?, heads)?.to_dtype(heads.products)?,
            k: k.to_dtype(heads.products)?,
            v: v.to_dtype(heads.products)?,
            v_mean,
            mask: mask.clone(),
        })
    }

    /// The scores `q kᵀ`, capped: `[n keys, shared Q, K]`.
    fn scores(&self) -> Result<Tensor> {
        let scores = self.q.matmul(&self.k.t()?)?;
        self.heads.soft_cap.map_or_else(|| Ok(scores.clone()), |cap| composed_soft_cap(&scores, cap))
    }

    /// The attention weights: `P = softmax(scores + mask)`, `[n keys, shared Q, K]`.
    fn weights(&self, scores: &Tensor) -> Result<Tensor> {
        let (n, _, queries, keys) = self.mask.dims4()?;
        let scores = scores.reshape((n, self.heads.queries, queries, keys))?.broadcast_add(&self.mask)?;
        softmax(&scores)?.reshape((n * self.heads.keys, self.heads.shared() * queries, keys))
    }

    /// `P v`, `[n, Q, queries * features]`, in f32.
    pub(crate) fn output(&self) -> Result<Tensor> {
        let y = self.weights(&self.scores()?)?.matmul(&self.v)?.to_dtype(DType::F32)?.broadcast_add(&self.v_mean)?;
        by_token(&y, self.mask.dim(2)?, self.heads)
    }

    /// From the output and its gradient, `[n, Q, queries * features]` each:
    ///
    /// `dv = Pᵀ dy`, `dS = P (dy vᵀ - rowsum(dy y))`, times the derivative of a soft cap, `dq = scale dS k` and
    /// `dk = scale dSᵀ q`; `rowsum(P dP)` is `rowsum(dy y)`, of which there are fewer (Dao et al. 2022,
    /// <https://arxiv.org/abs/2205.14135>).
    pub(crate) fn gradients(&self, y: &Tensor, dy: &Tensor) -> Result<SdpaGradients> {
        let (y, dy) = (by_key_head(y, self.heads)?.broadcast_sub(&self.v_mean)?, by_key_head(dy, self.heads)?);
        let row_dot = (y * &dy)?.sum_keepdim(D::Minus1)?.to_dtype(self.heads.products)?;
        let scores = self.scores()?;
        let (p, dy) = (self.weights(&scores)?, dy.to_dtype(self.heads.products)?);
        let ds = (dy.matmul(&self.v.t()?)?.broadcast_sub(&row_dot)? * &p)?;
        let ds = self.heads.soft_cap.map_or_else(|| Ok(ds.clone()), |cap| &ds * composed_derivative(&scores, cap)?)?;
        let queries = self.mask.dim(2)?;
        let keys = self.k.dim(1)?;
        Ok(SdpaGradients {
            q: (by_token(&ds.matmul(&self.k)?, queries, self.heads)? * self.heads.scale())?,
            k: by_token(&ds.t()?.matmul(&self.q)?, keys, self.heads)?,
            v: by_token(&p.t()?.matmul(&dy)?, keys, self.heads)?,
        })
    }
}

/// The softmax of the last dimension. Its sums are in f32: candle's own are on GPUs, while on a CPU it adds 16-bit numbers
/// one by one.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    match scores.device().is_cpu() {
        true => softmax_last_dim(&scores.to_dtype(DType::F32)?)?.to_dtype(scores.dtype()),
        false => softmax_last_dim(scores),
    }
}

/// `[n, T, keys * shared * features]` as `[n keys, shared T, features]`; `shared` is 1 for what each key head has one of.
fn by_key_head(t: &Tensor, heads: AttentionHeads) -> Result<Tensor> {
    let (n, tokens, width) = t.dims3()?;
    let shared = width / heads.key_width();
    let t = t.reshape((n, tokens, heads.keys, shared, heads.features))?.permute((0, 2, 3, 1, 4))?;
    t.contiguous()?.reshape((n * heads.keys, shared * tokens, heads.features))
}

/// The inverse of [`by_key_head`], in f32: `[n, tokens, keys * shared * features]`.
fn by_token(t: &Tensor, tokens: usize, heads: AttentionHeads) -> Result<Tensor> {
    let (n, shared) = (t.dim(0)? / heads.keys, t.dim(1)? / tokens);
    let t = t.reshape((n, heads.keys, shared, tokens, heads.features))?.permute((0, 3, 1, 2, 4))?;
    t.to_dtype(DType::F32)?.contiguous()?.reshape((n, tokens, heads.keys * shared * heads.features))
}

/// Rows less their mean, and the mean, `[n keys, 1, features]`.
fn centered(t: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = t.mean_keepdim(1)?;
    Ok((t.broadcast_sub(&mean)?, mean))
}
