//! How likely rows find their answers: the `loss` of every task.

use anyhow::{Result, ensure};
use candle_core::DType;
use lorakit_model::Packed;
use lorakit_task::Example;

use crate::batch::batches;
use crate::model::Model;

/// The mean negative log-likelihood per target token, EOS included, of each example, in their order.
///
/// Rows are packed into forwards of at most `batch_tokens` tokens; which rows share a forward changes a result by
/// rounding only. `done` hears, after each forward, how many rows are finished.
///
/// # Errors
/// Where a row's likelihood is not finite, as that of a base or an adapter with broken weights.
pub fn row_losses(
    model: &Model,
    examples: &[Example],
    batch_tokens: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<f64>> {
    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    let mut losses = vec![0.0; examples.len()];
    let mut finished = 0;
    for group in batches(&lengths, batch_tokens) {
        for (&index, loss) in group.iter().zip(packed_losses(model, examples, &group)?) {
            ensure!(loss.is_finite(), "the loss of row {} of those given is {loss}", index + 1);
            losses[index] = loss;
        }
        finished += group.len();
        done(finished);
    }
    Ok(losses)
}

/// The losses of the examples of one forward.
fn packed_losses(model: &Model, examples: &[Example], group: &[usize]) -> Result<Vec<f64>> {
    let mut packed = Packed::default();
    for &index in group {
        packed.push(&examples[index].prompt, &examples[index].target, model.template.expert);
    }
    packed.for_each_row(|row| row.weights = model.template.weights.clone());
    let nll = model.base.nll(&packed, model.patches)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let mut sums = vec![(0.0, 0.0); group.len()];
    for (target, nll) in packed.targets().iter().zip(nll) {
        let (sum, count) = &mut sums[target.row as usize];
        *sum += nll;
        *count += 1.0;
    }
    Ok(sums.into_iter().map(|(sum, count)| sum / count).collect())
}
