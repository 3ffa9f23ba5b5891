//! Queries multiplied by a factor of their position (Ministral 3).

use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use std::sync::Arc;

/// Multiplies the queries, which are the first `width` columns of a token's row, with the token's factor.
pub(crate) struct QueryScaleOp {
    pub(crate) width: usize,
    /// One for each token.
    pub(crate) factors: Arc<[f32]>,
}

impl QueryScaleOp {
    /// `qkv`, `[tokens, fused width]`, with its queries multiplied. Differentiable, on any device.
    pub(crate) fn apply(self, qkv: &Tensor) -> Result<Tensor> {
        if qkv.device().is_cpu() {
            return op::unary(self, qkv);
        }
        self.composed(qkv)
    }

    fn composed(&self, qkv: &Tensor) -> Result<Tensor> {
        let factors = Tensor::from_slice(&self.factors, (self.factors.len(), 1), qkv.device())?;
        let queries = qkv.narrow(1, 0, self.width)?.broadcast_mul(&factors)?;
        Tensor::cat(&[queries, qkv.narrow(1, self.width, qkv.dim(1)? - self.width)?], 1)
    }

    fn multiply(&self, rows: &[f32]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        let columns = rows.len() / self.factors.len().max(1);
        for (row, factor) in rows.chunks_exact_mut(columns.max(1)).zip(self.factors.iter()) {
            row[..self.width].iter_mut().for_each(|value| *value *= factor);
        }
        rows
    }
}

impl Op<1> for QueryScaleOp {
    fn name(&self) -> &'static str {
        "query-scale"
    }

    fn forward(&self, [qkv]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, width) = qkv.matrix()?;
        if tokens != self.factors.len() || width < self.width {
            bail!("{} factors of {} features were given {tokens} x {width}", self.factors.len(), self.width);
        }
        Ok((self.multiply(qkv.values), (tokens, width).into()))
    }

    fn backward(&self, _: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        Ok([Some(self.multiply(dy))])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_op_equals_candle_s_ops_forward_and_backward() {
        let values = (0..12).map(|i| i as f32 - 5.0).collect();
        let qkv = Var::from_vec(values, (3, 4), &Device::Cpu).unwrap();
        let factors = || QueryScaleOp { width: 2, factors: [1.0, 1.5, 2.0].into() };
        let of = |y: &Tensor| -> [Vec<f32>; 2] {
            let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            [y, store.get(qkv.as_tensor()).unwrap()].map(|t| t.flatten_all().unwrap().to_vec1().unwrap())
        };
        let [y, dy] = of(&factors().apply(qkv.as_tensor()).unwrap());
        assert_eq!([y.clone(), dy], of(&factors().composed(qkv.as_tensor()).unwrap()));
        assert_eq!(y[4..], [-1.5, 0.0, 1.0, 2.0, 6.0, 8.0, 5.0, 6.0]);
    }
}
