//! Softmax over masked scores and what is taken by it, forward and backward, by candle's own ops.
//!
//! A vector that is taken from all keys changes each query's scores by one number, and so no weight; one that is taken
//! from all values is all of it in the output, since weights add up to one. Both are taken away before 16 bits round them,
//! for what keys have in common may be more than what tells them apart (Zhang et al. 2024,
//! <https://arxiv.org/abs/2410.02367>).

use crate::attention::Heads;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use std::ops::Range;

/// What a masked score is below all others.
const MASKED: f64 = 1e30;

/// Queries of `n` rows with the keys and values that they attend to: one matrix for each row and key head, in
/// [`Heads::products`]. The heads that share keys stand below one another, so that no key is repeated.
pub(crate) struct Meeting {
    heads: Heads,
    /// Divided by `sqrt(features)`, as there are fewer queries than scores: `[n keys, shared Q, features]`.
    q: Tensor,
    /// `[n keys, K, features]`, less what they have in common.
    k: Tensor,
    v: Tensor,
    /// What the values have in common, in f32: `[n keys, 1, features]`.
    middle: Tensor,
    /// `[n, 1, Q, K]`.
    mask: Tensor,
}

/// The gradients of a meeting, as its queries, keys and values were given.
pub(crate) struct Gradients {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl Meeting {
    /// `q`, `[n, Q, queries * features]`, `k` and `v`, `[n, K, keys * features]`, and the mask, `[n, 1, Q, K]`.
    pub(crate) fn new(heads: Heads, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Self> {
        let (k, _) = centred(&by_key_head(k, heads)?)?;
        let (v, middle) = centred(&by_key_head(v, heads)?)?;
        Ok(Self {
            heads,
            q: by_key_head(&(q * heads.scale())?, heads)?.to_dtype(heads.products)?,
            k: k.to_dtype(heads.products)?,
            v: v.to_dtype(heads.products)?,
            middle,
            mask: mask.clone(),
        })
    }

    /// What every query takes of every value: `P = softmax(q kᵀ + mask)`, `[n keys, shared Q, K]`.
    fn weights(&self) -> Result<Tensor> {
        let (n, _, queries, keys) = self.mask.dims4()?;
        let scores = self.q.matmul(&self.k.t()?)?;
        let scores = scores.reshape((n, self.heads.queries, queries, keys))?.broadcast_add(&self.mask)?;
        softmax_last_dim(&scores)?.reshape((n * self.heads.keys, self.heads.shared() * queries, keys))
    }

    /// `P v`, `[n, Q, queries * features]`, in f32.
    pub(crate) fn output(&self) -> Result<Tensor> {
        let y = self.weights()?.matmul(&self.v)?.to_dtype(DType::F32)?.broadcast_add(&self.middle)?;
        by_token(&y, self.mask.dim(2)?, self.heads)
    }

    /// From the output and its gradient, `[n, Q, queries * features]` each:
    ///
    /// `dv = Pᵀ dy`, `dS = P (dy vᵀ - rowsum(dy y))`, `dq = dS k / sqrt(features)` and `dk = dSᵀ q / sqrt(features)`;
    /// `rowsum(P dP)` is `rowsum(dy y)`, of which there are fewer (Dao et al. 2022, <https://arxiv.org/abs/2205.14135>).
    pub(crate) fn gradients(&self, y: &Tensor, dy: &Tensor) -> Result<Gradients> {
        let (y, dy) = (by_key_head(y, self.heads)?.broadcast_sub(&self.middle)?, by_key_head(dy, self.heads)?);
        let along = (y * &dy)?.sum_keepdim(D::Minus1)?.to_dtype(self.heads.products)?;
        let (p, dy) = (self.weights()?, dy.to_dtype(self.heads.products)?);
        let ds = (dy.matmul(&self.v.t()?)?.broadcast_sub(&along)? * &p)?;
        let queries = self.mask.dim(2)?;
        let keys = self.k.dim(1)?;
        Ok(Gradients {
            q: (by_token(&ds.matmul(&self.k)?, queries, self.heads)? * self.heads.scale())?,
            k: by_token(&ds.t()?.matmul(&self.q)?, keys, self.heads)?,
            v: by_token(&p.t()?.matmul(&dy)?, keys, self.heads)?,
        })
    }
}

/// `[n, T, keys * shared * features]` as `[n keys, shared T, features]`; `shared` is 1 for what each key head has one of.
fn by_key_head(t: &Tensor, heads: Heads) -> Result<Tensor> {
    let (n, tokens, width) = t.dims3()?;
    let shared = width / heads.key_width();
    let t = t.reshape((n, tokens, heads.keys, shared, heads.features))?.permute((0, 2, 3, 1, 4))?;
    t.contiguous()?.reshape((n * heads.keys, shared * tokens, heads.features))
}

/// The way back from [`by_key_head`], to f32: `[n, tokens, keys * shared * features]`.
fn by_token(t: &Tensor, tokens: usize, heads: Heads) -> Result<Tensor> {
    let (n, shared) = (t.dim(0)? / heads.keys, t.dim(1)? / tokens);
    let t = t.reshape((n, heads.keys, shared, tokens, heads.features))?.permute((0, 3, 1, 2, 4))?;
    t.to_dtype(DType::F32)?.contiguous()?.reshape((n, tokens, heads.keys * shared * heads.features))
}

/// Rows less their mean, and the mean, `[n keys, 1, features]`.
fn centred(t: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = t.mean_keepdim(1)?;
    Ok((t.broadcast_sub(&mean)?, mean))
}

/// Zero where a query sees a key, and far below any score where it does not: `[n, 1, Q, K]`, in [`Heads::products`].
/// `visible` holds what each of the `n Q` queries sees of its row's keys: two numbers for each go to the device, and are
/// compared with the keys' places there.
pub(crate) fn mask(
    visible: &[Range<usize>],
    (n, queries, keys): (usize, usize, usize),
    heads: Heads,
    device: &Device,
) -> Result<Tensor> {
    // Whole numbers up to 2^24 are exact in f32.
    let of = |bound: fn(&Range<usize>) -> usize| {
        let bounds: Vec<f32> = visible.iter().map(|seen| bound(seen) as f32).collect();
        Tensor::from_vec(bounds, (n, 1, queries, 1), device)
    };
    let places = Tensor::from_vec((0..keys).map(|key| key as f32).collect(), (1, 1, 1, keys), device)?;
    let begun = of(|seen| seen.start)?.broadcast_le(&places)?.to_dtype(DType::F32)?;
    let ended = of(|seen| seen.end)?.broadcast_le(&places)?.to_dtype(DType::F32)?;
    (begun - ended)?.affine(MASKED, -MASKED)?.to_dtype(heads.products)
}
