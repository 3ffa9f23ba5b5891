//! ROUGE-L: the longest common subsequence of a text and an accepted answer.

use crate::error::{EvalError, Result};
use rougers::{RougeScorer, RougeType, Tokenizer};

/// The F1 of the longest common subsequence of words with the best of the accepted answers, in 0 to 1. Words are runs of
/// `[a-z0-9]` in lower case, Porter-stemmed if longer than three letters, as in Google's `rouge-score` and torchmetrics.
/// arXiv:2405.11157 reports 100 times this value.
///
/// # Errors
/// Never for any text; only the scorer's constructor is fallible.
pub fn rouge_l<S: AsRef<str>>(text: &str, accepted: &[S]) -> Result<f64> {
    let scorer = RougeScorer::with_tokenizer(vec![RougeType::L], Tokenizer::new(true))
        .map_err(|error| EvalError::Rouge(error.into()))?;
    let best = scorer.score_multi(accepted, text).and_then(|scores| scores.get(RougeType::L));
    Ok(best.map_or(0.0, |score| score.fmeasure))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        pred: String,
        refs: Vec<String>,
        #[serde(rename = "rougeL")]
        rouge_l: f64,
    }

    #[test]
    fn scores_equal_those_of_the_paper_s_code() {
        let oracle: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/mttl_scores.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_value(oracle["text_metrics"].clone()).unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            let found = 100.0 * rouge_l(&case.pred, &case.refs).unwrap();
            assert!((found - case.rouge_l).abs() < 1e-4, "{}: {found}", case.pred);
        }
    }
}
