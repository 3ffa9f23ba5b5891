//! The way back through one layer, written down as the way there is gone.
//!
//! candle's graph starts every value's gradient as zeros, adds to it, and keeps what every addition was made of. Over a
//! frozen base, with adapters that leave their gradients beside the graph, a gradient need only be handed on: it is added
//! up where a value was used twice, and what a step holds is let go when the step has been taken back.

use candle_core::{Result, Tensor, TensorId};
use lorakit_lora::AdaptedSite;
use std::collections::{HashMap, HashSet};

/// The steps of one layer.
pub struct Tape {
    input: TensorId,
    /// Values from which a gradient leads on to one that is asked for.
    wanted: HashSet<TensorId>,
    steps: Vec<Step>,
}

type Backward = Box<dyn FnOnce(&Tensor) -> Result<Tensor> + Send>;

enum Step {
    /// `y` of `x`.
    Of { y: TensorId, x: TensorId, backward: Backward },
    /// A site whose experts are trained, whether the gradient of `x` is asked for or not.
    Site { y: TensorId, x: Tensor, of_x: bool, site: Box<AdaptedSite> },
    /// A sum, and those of its parts from which a gradient leads on.
    Sum { y: TensorId, parts: Vec<TensorId> },
}

impl Tape {
    /// An empty one, of a layer that starts at `input`, whose gradient may be asked for.
    pub(crate) fn new(input: &Tensor, is_wanted: bool) -> Self {
        let wanted = is_wanted.then_some(input.id()).into_iter().collect();
        Self { input: input.id(), wanted, steps: Vec::new() }
    }

    /// Writes down how the gradient passes from `y` to `x`.
    pub(crate) fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        backward: impl FnOnce(&Tensor) -> Result<Tensor> + Send + 'static,
    ) {
        if self.wanted.contains(&x.id()) {
            self.wanted.insert(y.id());
            self.steps.push(Step::Of { y: y.id(), x: x.id(), backward: Box::new(backward) });
        }
    }

    /// Writes down a site with experts.
    pub(crate) fn site(&mut self, x: &Tensor, y: &Tensor, site: AdaptedSite) {
        let of_x = self.wanted.contains(&x.id());
        self.wanted.insert(y.id());
        self.steps.push(Step::Site { y: y.id(), x: x.clone(), of_x, site: Box::new(site) });
    }

    /// Writes down a sum.
    pub(crate) fn sum(&mut self, parts: [&Tensor; 2], y: &Tensor) {
        let parts: Vec<TensorId> = parts.map(Tensor::id).into_iter().filter(|id| self.wanted.contains(id)).collect();
        if !parts.is_empty() {
            self.wanted.insert(y.id());
            self.steps.push(Step::Sum { y: y.id(), parts });
        }
    }

    /// Takes all steps back from the gradient of the layer's output, and returns that of its input where it was asked
    /// for; the experts' gradients are where their sites leave them.
    pub fn backward(self, output: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
        let mut gradients = Gradients(HashMap::from([(output.id(), gradient)]));
        for step in self.steps.into_iter().rev() {
            match step {
                Step::Of { y, x, backward } => {
                    if let Some(dy) = gradients.0.remove(&y) {
                        gradients.add(x, backward(&dy.contiguous()?)?)?;
                    }
                }
                Step::Site { y, x, of_x, site } => {
                    if let Some(dy) = gradients.0.remove(&y)
                        && let Some(dx) = site.backward(&x, &dy, of_x)?
                    {
                        gradients.add(x.id(), dx)?;
                    }
                }
                Step::Sum { y, parts } => {
                    if let Some(dy) = gradients.0.remove(&y) {
                        parts.into_iter().try_for_each(|part| gradients.add(part, dy.clone()))?;
                    }
                }
            }
        }
        Ok(gradients.0.remove(&self.input))
    }
}

/// The gradients that have not been handed on yet.
struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    fn add(&mut self, of: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&of) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0.insert(of, sum);
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

    /// `y = h + 3 h + c`, with a constant that is written down too.
    fn taped(is_wanted: bool) -> Option<f32> {
        let (h, constant) = (of(2.0), of(5.0));
        let mut tape = Tape::new(&h, is_wanted);
        let tripled = (&h * 3.0).unwrap();
        tape.step(&h, &tripled, |dy| dy * 3.0);
        let doubled = (&constant * 2.0).unwrap();
        tape.step(&constant, &doubled, |_| unreachable!("nothing asks for the gradient of a constant"));
        let sum = (&h + &tripled).unwrap();
        tape.sum([&h, &tripled], &sum);
        let y = (&sum + &doubled).unwrap();
        tape.sum([&sum, &doubled], &y);
        let dh = tape.backward(&y, of(0.5)).unwrap();
        dh.map(|dh| dh.to_vec1::<f32>().unwrap()[0])
    }

    #[test]
    fn gradients_add_up_where_a_value_was_used_twice() {
        assert_eq!(taped(true), Some(0.5 + 1.5));
    }

    #[test]
    fn what_is_not_asked_for_is_not_made() {
        assert_eq!(taped(false), None);
    }
}
