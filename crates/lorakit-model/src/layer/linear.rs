//! The linear layers of a site as one op. Where they are frozen, its backward computes the gradient of the input only.

use crate::weights::matrix_products::forward_side_by_side;
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::token_precision::TokenPrecision;
use crate::weights::weight::Weight;
use candle_core::{DType, Result, Shape, Tensor, bail};
use lorakit_lora::FrozenLinear;
use lorakit_lora::kernels::gemm::{Destination, MatrixRef};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use lorakit_lora::kernels::vjp::with_vjp;
use rayon::prelude::*;
use std::sync::Arc;

/// The weights of one projection, `x Wᵀ + b`.
#[derive(Clone)]
pub struct LinearWeights {
    /// The weight, `[out, in]`.
    pub weight: Weight,
    /// The bias, `[out]`.
    pub bias: Option<Tensor>,
    /// Number of output features.
    pub width: usize,
}

/// The projections of one site, their outputs side by side.
#[derive(Clone)]
pub struct FusedLinear {
    projections: Vec<LinearWeights>,
    /// The same for the CPU, if all are frozen and mapped.
    frozen: Option<Arc<FrozenProjections>>,
}

/// The projections of one site, frozen and mapped.
struct FrozenProjections {
    projections: Vec<FrozenProjection>,
    input: usize,
    output: usize,
}

/// A projection whose weight is mapped.
struct FrozenProjection {
    weight: MmapMatrix,
    bias: Option<Vec<f32>>,
}

impl FusedLinear {
    /// Projections that read the same input.
    pub fn new(projections: Vec<LinearWeights>) -> Result<Self> {
        let mut frozen = Some(Vec::new());
        for projection in &projections {
            match (&projection.weight, frozen.as_mut()) {
                (Weight::Mapped(weight), Some(list)) => {
                    let bias = projection.bias.as_ref().map(|b| b.to_vec1::<f32>()).transpose()?;
                    list.push(FrozenProjection { weight: weight.clone(), bias });
                }
                _ => frozen = None,
            }
        }
        Ok(Self { frozen: frozen.map(|list| Arc::new(FrozenProjections::new(list))), projections })
    }

    /// Whether tokens of 8 bits are multiplied with any of its weights.
    pub(crate) fn has_integer_products(&self) -> bool {
        self.projections.iter().any(|projection| projection.weight.has_integer_products())
    }

    /// The outputs, `[tokens, sum of widths]`, of `x`, `[tokens, in]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_at(x, TokenPrecision::Exact)
    }

    /// The same of tokens of this precision.
    pub(crate) fn forward_at(&self, x: &Tensor, precision: TokenPrecision) -> Result<Tensor> {
        match &self.frozen {
            Some(projections) => op::unary(FrozenOp { projections: projections.clone(), precision }, x),
            None => self.composed(x),
        }
    }

    /// The projections as a plain function, if all are frozen and on a CPU.
    pub fn frozen(&self) -> Option<Arc<dyn FrozenLinear>> {
        self.frozen.clone().map(|projections| projections as Arc<dyn FrozenLinear>)
    }

    /// Composed of candle's products, where weights are tensors: on a GPU, or trained.
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let trains = |p: &LinearWeights| {
            matches!(&p.weight, Weight::Tensor(weight) if weight.track_op())
                || p.bias.as_ref().is_some_and(Tensor::track_op)
        };
        if self.projections.iter().any(trains) {
            return outputs(&self.projections, x);
        }
        // candle would compute and hold the gradient of every frozen weight.
        let (y, projections) = (outputs(&self.projections, &x.detach())?, self.projections.clone());
        with_vjp(x, y, move |dy| {
            let mut start = 0;
            let parts = projections.iter().map(|projection| {
                let part = dy.narrow(1, start, projection.width)?.contiguous()?;
                start += projection.width;
                gradient_product(&part, &projection.weight.tensor(dy)?)
            });
            let parts: Vec<Tensor> = parts.collect::<Result<_>>()?;
            parts[1..].iter().try_fold(parts[0].clone(), |sum, part| sum + part)
        })
    }
}

/// `x Wᵀ + b` of every projection, side by side.
fn outputs(projections: &[LinearWeights], x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let outputs = projections.iter().map(|projection| {
        let y = product(&x, &projection.weight.tensor(&x)?.t()?)?;
        match &projection.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    });
    let outputs: Vec<Tensor> = outputs.collect::<Result<_>>()?;
    if let [one] = outputs.as_slice() { Ok(one.clone()) } else { Tensor::cat(&outputs, 1) }
}

/// `x w` in the weight's own type, as f32. A weight of 16 bits is not widened: `x` and the product are rounded to its type,
/// with sums in f32.
pub(crate) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.to_dtype(w.dtype())?.matmul(w)?.to_dtype(DType::F32)
}

/// The same for gradients, which may be below the range of f16: there those of each token are scaled to one before.
pub(crate) fn gradient_product(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    if w.dtype() != DType::F16 {
        return product(dy, w);
    }
    // The smallest f32 keeps zeros from being divided by zero.
    let size = (dy.abs()?.max_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?;
    product(&dy.broadcast_div(&size)?, w)?.broadcast_mul(&size)
}

impl FrozenProjections {
    fn new(projections: Vec<FrozenProjection>) -> Self {
        let input = projections.first().map_or(0, |p| p.weight.columns());
        let output = projections.iter().map(|p| p.weight.rows()).sum();
        Self { projections, input, output }
    }

    /// The outputs, `[tokens, output]`, of `x`, `[tokens, input]`.
    fn product(&self, x: &[f32], precision: TokenPrecision) -> Vec<f32> {
        let (tokens, width) = (x.len() / self.input, self.output);
        // Without tokens, the second projection's columns would start beyond `y`.
        if tokens == 0 {
            return Vec::new();
        }
        let weights: Vec<&MmapMatrix> = self.projections.iter().map(|projection| &projection.weight).collect();
        let write = |y: &mut [f32]| forward_side_by_side(&weights, x, y, precision);
        // SAFETY: the products of all projections overwrite all columns.
        let mut y = unsafe { uninit_vec(tokens * width, write) };
        self.add_biases(&mut y);
        y
    }

    /// Adds the biases to the outputs, all of a token in one pass.
    fn add_biases(&self, y: &mut [f32]) {
        if self.projections.iter().all(|projection| projection.bias.is_none()) {
            return;
        }
        let rows = y.par_chunks_exact_mut(self.output).with_min_len(BIASED_VALUES.div_ceil(self.output));
        rows.for_each(|row| {
            let mut rest = row;
            for FrozenProjection { weight, bias } in &self.projections {
                let (own, others) = rest.split_at_mut(weight.rows());
                if let Some(bias) = bias {
                    own.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                }
                rest = others;
            }
        });
    }
}

/// Outputs worth a thread of their own when biases are added.
const BIASED_VALUES: usize = 1 << 14;

/// `dx = dy W`: no gradient of `W` is computed.
impl FrozenLinear for FrozenProjections {
    fn input(&self) -> usize {
        self.input
    }

    fn output(&self) -> usize {
        self.output
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.product(x, TokenPrecision::Exact)
    }

    fn backward(&self, dy: &[f32]) -> Vec<f32> {
        let tokens = dy.len() / self.output;
        if tokens == 0 {
            return Vec::new();
        }
        let write = |dx: &mut [f32]| {
            let mut start = 0;
            for FrozenProjection { weight, .. } in &self.projections {
                let part = MatrixRef::new(&dy[start..], tokens, weight.rows(), self.output);
                let into = if start == 0 { Destination::Overwrite } else { Destination::Add };
                start += weight.rows();
                weight.backward(part, dx, into);
            }
        };
        // SAFETY: the first projection's product overwrites all values.
        unsafe { uninit_vec(tokens * self.input, write) }
    }
}

/// The same as an op of `x`.
struct FrozenOp {
    projections: Arc<FrozenProjections>,
    precision: TokenPrecision,
}

impl Op<1> for FrozenOp {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, input) = x.matrix()?;
        if self.projections.projections.iter().any(|p| p.weight.columns() != input) {
            bail!("a linear layer was given {input} features");
        }
        let y = self.projections.product(x.values, self.precision);
        Ok((y, (tokens, self.projections.output).into()))
    }

    fn backward(&self, _: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        Ok([Some(self.projections.backward(dy))])
    }
}
