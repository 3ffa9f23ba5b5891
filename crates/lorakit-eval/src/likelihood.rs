//! How likely rows find their answers: the `loss` of every task.

use anyhow::Result;
use candle_core::DType;
use lorakit_model::{Packed, Target};
use lorakit_task::Example;

use crate::patched_model::PatchedModel;
use crate::token_batches::token_batches;

/// The mean negative log-likelihood per target token, EOS included, of each example, in their order.
///
/// Rows are packed into forwards of at most `batch_tokens` tokens; which rows share a forward changes a result by
/// rounding only. `done` hears, as forwards end, how many rows are finished.
///
/// A loss is not finite where weights are broken; that is for the caller to judge.
///
/// # Errors
/// Where a token is not of the base's vocabulary, or the forward fails.
pub fn example_losses(
    model: &PatchedModel,
    examples: &[Example],
    batch_tokens: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<f64>> {
    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    let mut losses = vec![0.0; examples.len()];
    let mut finished = 0;
    let lanes = model.base.batch_parallel(batch_tokens);
    let of_group = |group: &Vec<usize>| -> Result<_> { Ok((group.clone(), packed_losses(model, examples, group)?)) };
    lanes.run(&token_batches(&lengths, lanes.tokens()), of_group, |(group, found)| {
        group.iter().zip(found).for_each(|(&index, loss)| losses[index] = loss);
        finished += group.len();
        done(finished);
        Ok(())
    })?;
    Ok(losses)
}

/// The losses of the examples of one forward.
fn packed_losses(model: &PatchedModel, examples: &[Example], group: &[usize]) -> Result<Vec<f64>> {
    let prompts: Vec<&[u32]> = group.iter().map(|&index| examples[index].prompt.as_slice()).collect();
    let routing = model.routing(&prompts)?;
    let mut packed = Packed::default();
    for (&index, template) in group.iter().zip(&routing) {
        packed.push(&examples[index].prompt, &examples[index].target, template.expert);
    }
    let mut weights = routing.into_iter().map(|template| template.weights);
    packed.for_each_row(|row| row.weights = weights.next().flatten());
    let nll = model.base.nll(&packed, model.patches)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(row_means(packed.targets(), &nll, group.len()))
}

/// The mean of each row's targets.
fn row_means(targets: &[Target], nll: &[f64], rows: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); rows];
    for (target, nll) in targets.iter().zip(nll) {
        let (sum, count) = &mut sums[target.row as usize];
        *sum += nll;
        *count += 1.0;
    }
    sums.into_iter().map(|(sum, count)| sum / count).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr)]
    use super::*;
    use candle_core::{Device, Tensor};
    use lorakit_model::layer::lm_head::LmHead;
    use lorakit_model::weight::Weight;
    use std::path::Path;

    /// The logits and labels of a batch, and the length-normalised loss that mttl's evaluator gave for them.
    #[test]
    fn a_row_s_loss_is_that_of_the_papers_code() {
        let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/mttl_oracle.json");
        let Ok(text) = std::fs::read_to_string(oracle) else {
            return eprintln!("skipped: no ../shared");
        };
        let oracle: serde_json::Value = serde_json::from_str(&text).unwrap();
        let case = |key: &str| oracle["loglike"][key].clone();
        let logits: Vec<Vec<Vec<f32>>> = serde_json::from_value(case("logits")).unwrap();
        let labels: Vec<Vec<i64>> = serde_json::from_value(case("labels")).unwrap();
        let expected: Vec<f64> = serde_json::from_value(case("normalized")).unwrap();

        // Packed rows leave out what follows the last target, and the last target itself is not read.
        let (mut packed, mut h) = (Packed::default(), Vec::new());
        for (logits, labels) in logits.iter().zip(&labels) {
            let from = labels.iter().position(|&label| label >= 0).unwrap();
            let target: Vec<u32> = labels[from..].iter().filter_map(|&label| u32::try_from(label).ok()).collect();
            packed.push(&vec![0; from], &target, None);
            h.extend_from_slice(&logits[..from + target.len() - 1]);
        }
        // A head that is the identity makes hidden states of 7 features the logits of 7 tokens.
        let identity = Tensor::eye(7, candle_core::DType::F32, &Device::Cpu).unwrap();
        let h = packed.predicting(&Tensor::new(h, &Device::Cpu).unwrap()).unwrap();
        let nll = LmHead::new(Weight::Tensor(identity), None, 7).nll(&h, &packed.target_ids(), None).unwrap();
        let nll: Vec<f64> = nll.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        for (found, expected) in row_means(packed.targets(), &nll, 2).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
