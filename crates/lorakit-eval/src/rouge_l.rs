//! Rouge-L: how much of an accepted answer a text has, in order.

use anyhow::Result;
use rougers::{RougeScorer, RougeType, Tokenizer};

/// The F1 of the longest common subsequence of words, in 0 to 1, with the best of the accepted answers. Words are
/// runs of `[a-z0-9]` after lower-casing, stemmed by Porter where longer than three letters: what Google's
/// `rouge-score` and torchmetrics compute, and what arXiv:2405.11157 reports a hundredfold.
///
/// # Errors
/// None for any text; the scorer's own constructor may refuse its settings.
pub fn rouge_l<S: AsRef<str>>(text: &str, accepted: &[S]) -> Result<f64> {
    let scorer = RougeScorer::with_tokenizer(vec![RougeType::L], Tokenizer::new(true))?;
    let best = scorer.score_multi(accepted, text).and_then(|scores| scores.get(RougeType::L));
    Ok(best.map_or(0.0, |score| score.fmeasure))
}
