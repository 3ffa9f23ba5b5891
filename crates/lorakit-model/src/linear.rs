//! The frozen linears of a site: one op whose backward returns the input's gradient only.

use crate::weight::{Mapped, Weight};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use lorakit_lora::product::Destination;
use lorakit_lora::vjp::with_vjp;
use lorakit_lora::{Frozen, cpu};
use std::sync::Arc;

/// One projection `x Wᵀ + b`, with `W` `[out, in]`.
#[derive(Clone)]
pub struct Projection {
    /// The weight, `[out, in]`.
    pub weight: Weight,
    /// The bias, `[out]`.
    pub bias: Option<Tensor>,
    /// Number of outputs.
    pub width: usize,
}

/// The projections of one site, whose outputs stand side by side.
#[derive(Clone)]
pub struct Linear {
    projections: Vec<Projection>,
    /// The same in the form that the CPU's op takes, where all are frozen and mapped.
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
    weight: Mapped,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Projections that read the same input.
    pub fn new(projections: Vec<Projection>) -> Result<Self> {
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

    /// `x`, `[tokens, in]`, through every projection: `[tokens, sum of widths]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.frozen {
            Some(projections) => x.contiguous()?.apply_op1(FrozenOp(projections.clone())),
            None => self.plain(x),
        }
    }

    /// The projections as plain functions, where all are frozen and on a CPU.
    pub fn frozen(&self) -> Option<Arc<dyn Frozen>> {
        self.frozen.clone().map(|projections| projections as Arc<dyn Frozen>)
    }

    /// By candle's own products, where weights are tensors: they live on a device, or train.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let trains = |p: &Projection| {
            matches!(&p.weight, Weight::Tensor(weight) if weight.track_op())
                || p.bias.as_ref().is_some_and(Tensor::track_op)
        };
        if self.projections.iter().any(trains) {
            return outputs(&self.projections, x);
        }
        // Left to itself, candle would make and hold the gradient of every frozen weight.
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
fn outputs(projections: &[Projection], x: &Tensor) -> Result<Tensor> {
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

/// `x w` in the weight's own type, as f32: a weight of 16 bits is not widened, so `x` is rounded to its type, and so is
/// the product, whose sums are f32 within.
pub(crate) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.to_dtype(w.dtype())?.matmul(w)?.to_dtype(DType::F32)
}

/// The same of gradients, which may be smaller than f16 reaches: there each token's are multiplied at the size of one.
pub(crate) fn gradient_product(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    if w.dtype() != DType::F16 {
        return product(dy, w);
    }
    // Where all are zero they stay so.
    let size = (dy.abs()?.max_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?;
    product(&dy.broadcast_div(&size)?, w)?.broadcast_mul(&size)
}

impl FrozenProjections {
    fn new(projections: Vec<FrozenProjection>) -> Self {
        let input = projections.first().map_or(0, |p| p.weight.columns());
        let output = projections.iter().map(|p| p.weight.rows()).sum();
        Self { projections, input, output }
    }
}

/// `y = x Wᵀ + b` with frozen, mapped `W`: `dx = dy W`, and no gradient of `W` is ever computed or stored.
impl Frozen for FrozenProjections {
    fn input(&self) -> usize {
        self.input
    }

    fn output(&self) -> usize {
        self.output
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let width = self.output;
        let mut y = vec![0.0; x.len() / self.input * width];
        // Without tokens there is no place for the second projection to start at.
        if y.is_empty() {
            return y;
        }
        let mut start = 0;
        for FrozenProjection { weight, bias } in &self.projections {
            let columns = start..start + weight.rows();
            weight.forward(x, &mut y, width, columns.clone());
            if let Some(bias) = bias {
                for row in y.chunks_exact_mut(width) {
                    row[columns.clone()].iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                }
            }
            start = columns.end;
        }
        y
    }

    fn backward(&self, dy: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; dy.len() / self.output * self.input];
        if dx.is_empty() {
            return dx;
        }
        let mut start = 0;
        for FrozenProjection { weight, .. } in &self.projections {
            let columns = start..start + weight.rows();
            let into = if start == 0 { Destination::Overwrite } else { Destination::Add };
            start = columns.end;
            weight.backward(dy, self.output, columns, &mut dx, into);
        }
        dx
    }
}

/// The same in candle's graph.
struct FrozenOp(Arc<FrozenProjections>);

impl CustomOp1 for FrozenOp {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, input) = layout.shape().dims2()?;
        if self.0.projections.iter().any(|p| p.weight.columns() != input) {
            bail!("a linear was given {input} features");
        }
        cpu::result(self.0.forward(cpu::values(x, layout, self.name())?), (tokens, self.0.output))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = cpu::with_values(&dy.contiguous()?, self.name(), |dy| self.0.backward(dy))?;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
