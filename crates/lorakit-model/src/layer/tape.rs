//! Records a layer's backward steps during its forward.
//!
//! candle's graph starts the gradient of every value as zeros, adds to it, and keeps what every addition was made of. Over
//! a frozen base, with adapters that leave their gradients beside the graph, a gradient need only be passed on: it is
//! summed where a value was used twice, and what a step holds is freed when its backward has run.

use crate::layer::residual_sum::{term_gradient, untracked_sum};
use candle_core::{Result, Tensor, TensorId};
use lorakit_lora::kernels::op::{self, Op};
use std::collections::{HashMap, HashSet};

/// The recorded steps of one layer.
pub struct Tape {
    input: TensorId,
    /// Values whose gradient is needed for one that was asked for.
    wanted: HashSet<TensorId>,
    steps: Vec<Step>,
}

type Backward = Box<dyn FnOnce(&Tensor) -> Result<Tensor> + Send>;

type PairBackward = Box<dyn FnOnce(&Tensor) -> Result<[Option<Tensor>; 2]> + Send>;

enum Step {
    /// `y` as a function of `x`.
    Function { y: TensorId, x: TensorId, backward: Backward },
    /// `y` as a function of two inputs.
    Pair { y: TensorId, inputs: [TensorId; 2], backward: PairBackward },
    /// An op with parameters of its own, whose backward runs whether the gradient of `x` is wanted or not.
    Trained { y: TensorId, x: Tensor, of_x: bool, op: Box<dyn Op<1>> },
    /// A sum, with those of its terms whose gradient is wanted, and what each is multiplied with.
    Sum { y: TensorId, terms: Vec<(TensorId, f64)> },
}

impl Tape {
    /// An empty tape of a layer that starts at `input`, whose gradient is asked for if `wanted`.
    pub(crate) fn new(input: &Tensor, wanted: bool) -> Self {
        let values = wanted.then_some(input.id()).into_iter().collect();
        Self { input: input.id(), wanted: values, steps: Vec::new() }
    }

    /// Records how the gradient of `y` becomes that of `x`.
    pub(crate) fn record(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        backward: impl FnOnce(&Tensor) -> Result<Tensor> + Send + 'static,
    ) {
        if self.wanted.contains(&x.id()) {
            self.wanted.insert(y.id());
            self.steps.push(Step::Function { y: y.id(), x: x.id(), backward: Box::new(backward) });
        }
    }

    /// The output of `op` over `x`, recorded.
    pub(crate) fn apply(&mut self, op: Box<dyn Op<1>>, x: &Tensor) -> Result<Tensor> {
        let at = x.contiguous()?;
        let y = op::forward(&*op, [&at])?;
        self.record(x, &y, move |dy| op::input_gradient(&*op, [&at], dy));
        Ok(y)
    }

    /// The output of `op` over two inputs, recorded.
    pub(crate) fn apply_pair(&mut self, op: Box<dyn Op<2>>, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        let at = [a.contiguous()?, b.contiguous()?];
        let y = op::forward(&*op, [&at[0], &at[1]])?;
        let (inputs, wanted) = ([a.id(), b.id()], [a, b].map(|input| self.wanted.contains(&input.id())));
        if wanted.contains(&true) {
            self.wanted.insert(y.id());
            let backward = move |dy: &Tensor| op::backward(&*op, [&at[0], &at[1]], dy, wanted);
            self.steps.push(Step::Pair { y: y.id(), inputs, backward: Box::new(backward) });
        }
        Ok(y)
    }

    /// The output over `x` of an `op` whose backward leaves gradients of parameters elsewhere, recorded.
    pub(crate) fn apply_trained(&mut self, op: Box<dyn Op<1>>, x: &Tensor) -> Result<Tensor> {
        let at = x.contiguous()?;
        let y = op::forward(&*op, [&at])?;
        let of_x = self.wanted.contains(&x.id());
        self.wanted.insert(y.id());
        self.steps.push(Step::Trained { y: y.id(), x: x.clone(), of_x, op });
        Ok(y)
    }

    /// Records `y = a + factor b`.
    pub(crate) fn record_sum(&mut self, [a, b]: [&Tensor; 2], factor: f64, y: &Tensor) {
        let terms = [(a.id(), 1.0), (b.id(), factor)].into_iter();
        let terms: Vec<(TensorId, f64)> = terms.filter(|(id, _)| self.wanted.contains(id)).collect();
        if !terms.is_empty() {
            self.wanted.insert(y.id());
            self.steps.push(Step::Sum { y: y.id(), terms });
        }
    }

    /// Runs all steps backward from the gradient of the layer's `output`, and returns that of its input if it was asked
    /// for. The gradients of trained ops are where their backward leaves them.
    pub fn backward(self, output: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
        let mut gradients = PendingGradients(HashMap::from([(output.id(), gradient)]));
        for step in self.steps.into_iter().rev() {
            match step {
                Step::Function { y, x, backward } => {
                    if let Some(dy) = gradients.0.remove(&y) {
                        gradients.add(x, backward(&dy.contiguous()?)?)?;
                    }
                }
                Step::Pair { y, inputs, backward } => {
                    let Some(dy) = gradients.0.remove(&y) else { continue };
                    for (input, gradient) in inputs.into_iter().zip(backward(&dy)?) {
                        if let Some(gradient) = gradient.filter(|_| self.wanted.contains(&input)) {
                            gradients.add(input, gradient)?;
                        }
                    }
                }
                Step::Trained { y, x, of_x, op } => {
                    if let Some(dy) = gradients.0.remove(&y)
                        && let [Some(dx)] = op::backward(&*op, [&x.contiguous()?], &dy, [of_x])?
                    {
                        gradients.add(x.id(), dx)?;
                    }
                }
                Step::Sum { y, terms } => {
                    if let Some(dy) = gradients.0.remove(&y) {
                        for (term, factor) in terms {
                            gradients.add(term, term_gradient(&dy, factor)?)?;
                        }
                    }
                }
            }
        }
        Ok(gradients.0.remove(&self.input))
    }
}

/// Gradients that have not been passed on yet.
struct PendingGradients(HashMap<TensorId, Tensor>);

impl PendingGradients {
    fn add(&mut self, value: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&value) {
            Some(sum) => untracked_sum(&sum, &gradient, 1.0)?,
            None => gradient,
        };
        self.0.insert(value, sum);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    fn of(value: f32) -> Tensor {
        Tensor::new(&[value], &Device::Cpu).unwrap()
    }

    /// `y = h + 0.5 (3 h) + c`, with a constant that is recorded too.
    fn taped(wanted: bool) -> Option<f32> {
        let (h, constant) = (of(2.0), of(5.0));
        let mut tape = Tape::new(&h, wanted);
        let tripled = (&h * 3.0).unwrap();
        tape.record(&h, &tripled, |dy| dy * 3.0);
        let doubled = (&constant * 2.0).unwrap();
        tape.record(&constant, &doubled, |_| unreachable!("nothing asks for the gradient of a constant"));
        let sum = (&h + (&tripled * 0.5).unwrap()).unwrap();
        tape.record_sum([&h, &tripled], 0.5, &sum);
        let y = (&sum + &doubled).unwrap();
        tape.record_sum([&sum, &doubled], 1.0, &y);
        let dh = tape.backward(&y, of(0.5)).unwrap();
        dh.map(|dh| dh.to_vec1::<f32>().unwrap()[0])
    }

    #[test]
    fn gradients_are_summed_where_a_value_was_used_twice() {
        assert_eq!(taped(true), Some(0.5 + 0.75));
    }

    #[test]
    fn gradients_not_asked_for_are_not_computed() {
        assert_eq!(taped(false), None);
    }
}
