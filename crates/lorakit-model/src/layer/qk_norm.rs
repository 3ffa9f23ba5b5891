//! Norms of queries and keys before their rotation: of each head (Qwen 3, Gemma 3), or of all heads together (OLMo 2).

use crate::attention::heads::AttentionHeads;
use crate::layer::norm::{FrozenNorm, Norm};
use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use rayon::prelude::*;
use std::ops::Range;

/// The norms of queries and keys, each as wide as one head or as all of them.
#[derive(Clone)]
pub struct QkNorm {
    /// The norm of queries.
    pub queries: Norm,
    /// The norm of keys.
    pub keys: Norm,
}

impl QkNorm {
    /// `qkv`, `[tokens, fused width]`, with its queries and keys normed.
    pub fn forward(&self, heads: AttentionHeads, qkv: &Tensor) -> Result<Tensor> {
        match self.op(heads)? {
            Some(op) if qkv.device().is_cpu() => op::unary(op, qkv),
            _ => self.composed(heads, qkv),
        }
    }

    /// The same on any device, and with weights that train.
    pub fn composed(&self, heads: AttentionHeads, qkv: &Tensor) -> Result<Tensor> {
        let tokens = qkv.dim(0)?;
        let part = |columns: Range<usize>| qkv.narrow(1, columns.start, columns.len());
        let normed = |norm: &Norm, columns: Range<usize>| {
            let width = columns.len();
            let rows = part(columns)?.contiguous()?.reshape((tokens * (width / norm.width()), norm.width()))?;
            norm.forward(&rows)?.reshape((tokens, width))
        };
        let [queries, keys, values] = parts(heads);
        Tensor::cat(&[normed(&self.queries, queries)?, normed(&self.keys, keys)?, part(values)?], 1)
    }

    /// Its op on a CPU, if its weights are frozen.
    pub(crate) fn op(&self, heads: AttentionHeads) -> Result<Option<QkNormOp>> {
        let norms = (self.queries.frozen()?, self.keys.frozen()?);
        Ok(if let (Some(queries), Some(keys)) = norms { Some(QkNormOp { heads, queries, keys }) } else { None })
    }
}

/// The columns of queries, keys and values.
fn parts(heads: AttentionHeads) -> [Range<usize>; 3] {
    let keys = heads.queries * heads.features;
    let values = keys + heads.key_width();
    [0..keys, keys..values, values..heads.fused_width()]
}

/// [`QkNorm`] with frozen weights on a CPU.
pub(crate) struct QkNormOp {
    heads: AttentionHeads,
    queries: FrozenNorm,
    keys: FrozenNorm,
}

impl Op<1> for QkNormOp {
    fn name(&self) -> &'static str {
        "qk-norm"
    }

    fn forward(&self, [qkv]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, width) = qkv.matrix()?;
        if width != self.heads.fused_width() {
            bail!("norms of the queries and keys of {:?} were given {width} features", self.heads);
        }
        let [queries, keys, values] = parts(self.heads);
        let write = |y: &mut [f32]| {
            y.par_chunks_mut(width).with_min_len(16).zip(qkv.values.par_chunks(width)).for_each(|(y, x)| {
                for (norm, columns) in [(&self.queries, &queries), (&self.keys, &keys)] {
                    norm.rows(&x[columns.clone()], &mut y[columns.clone()]);
                }
                y[values.clone()].copy_from_slice(&x[values.clone()]);
            });
        };
        // SAFETY: queries, keys and values are all columns of a row.
        Ok((unsafe { uninit_vec(tokens * width, write) }, (tokens, width).into()))
    }

    fn backward(&self, [qkv]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let width = self.heads.fused_width();
        let [queries, keys, values] = parts(self.heads);
        assert_eq!(dy.len(), qkv.values.len(), "gradients of all outputs");
        let write = |dx: &mut [f32]| {
            let rows = dx.par_chunks_mut(width).with_min_len(16);
            rows.zip(qkv.values.par_chunks(width).zip(dy.par_chunks(width))).for_each(|(dx, (x, dy))| {
                for (norm, columns) in [(&self.queries, &queries), (&self.keys, &keys)] {
                    norm.rows_backward(&x[columns.clone()], &dy[columns.clone()], &mut dx[columns.clone()]);
                }
                dx[values.clone()].copy_from_slice(&dy[values.clone()]);
            });
        };
        // SAFETY: queries, keys and values are all columns of a row.
        Ok([Some(unsafe { uninit_vec(dy.len(), write) })])
    }
}
