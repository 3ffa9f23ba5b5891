//! The likelihood of answers: the `loss` of every task.

use crate::error::Result;
use crate::patched_model::PatchedModel;
use crate::token_batches::run_token_batches;
use lorakit_model::{NllSum, ScoredRow};
use lorakit_task::Example;

/// The mean negative log-likelihood per target token, EOS included, of each example, in order.
///
/// Examples are packed into forwards of at most `batch_tokens` tokens; which examples share a forward changes a result
/// only by rounding. After each forward, `done` receives the number of finished examples.
///
/// A loss may be NaN or infinite if weights are.
///
/// # Errors
/// If a token is not in the base's vocabulary, or the forward fails.
pub fn example_losses(
    model: &PatchedModel,
    examples: &[Example],
    batch_tokens: usize,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Vec<f64>> {
    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    let score = |batch: &[usize]| batch_losses(model, examples, batch);
    run_token_batches(&model.base.batch_parallel(batch_tokens), &lengths, score, done)
}

/// The losses of the examples of one forward.
fn batch_losses(model: &PatchedModel, examples: &[Example], batch: &[usize]) -> Result<Vec<f64>> {
    let prompts: Vec<&[u32]> = batch.iter().map(|&index| examples[index].prompt()).collect();
    let rows = batch.iter().zip(model.route(&prompts)?).map(|(&index, row)| ScoredRow {
        tokens: &examples[index].tokens,
        loss: &examples[index].loss,
        row,
    });
    let sums = model.base.nll_sums(rows, model.patches, model.precision)?;
    Ok(sums.into_iter().map(NllSum::mean).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device, Tensor};
    use lorakit_model::layer::lm_head::LmHead;
    use lorakit_model::weights::Weight;
    use lorakit_model::{TokenBatch, sums_by_row};

    /// Logits and labels of a batch, with the length-normalized loss that mttl's evaluator computes.
    #[test]
    fn losses_equal_those_of_the_paper_s_code() {
        let oracle: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/mttl_scores.json")).unwrap();
        let case = |key: &str| oracle["loglike"][key].clone();
        let logits: Vec<Vec<Vec<f32>>> = serde_json::from_value(case("logits")).unwrap();
        let labels: Vec<Vec<i64>> = serde_json::from_value(case("labels")).unwrap();
        let expected: Vec<f64> = serde_json::from_value(case("normalized")).unwrap();

        // Packed rows end before the last target, which is predicted but not read.
        let (mut packed, mut h) = (TokenBatch::default(), Vec::new());
        for (logits, labels) in logits.iter().zip(&labels) {
            let from = labels.iter().position(|&label| label >= 0).unwrap();
            let target: Vec<u32> = labels[from..].iter().filter_map(|&label| u32::try_from(label).ok()).collect();
            packed.push(&vec![0; from], &target, None);
            h.extend_from_slice(&logits[..from + target.len() - 1]);
        }
        // With an identity head, hidden states of 7 features are the logits of 7 tokens.
        let identity = Tensor::eye(7, DType::F32, &Device::Cpu).unwrap();
        let h = packed.target_states(&Tensor::new(h, &Device::Cpu).unwrap()).unwrap();
        let nll = LmHead::new(Weight::Tensor(identity), None, 7).nll(&h, &packed.target_ids(), None).unwrap();
        for (found, expected) in sums_by_row(&packed, &nll.to_vec1().unwrap()).iter().zip(expected) {
            assert!((found.mean() - expected).abs() < 1e-6, "{found:?} {expected}");
        }
    }
}
