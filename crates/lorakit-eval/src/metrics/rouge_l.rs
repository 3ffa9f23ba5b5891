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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr)]
    use super::*;
    use std::path::Path;

    #[derive(serde::Deserialize)]
    struct Case {
        pred: String,
        refs: Vec<String>,
        #[serde(rename = "rougeL")]
        rouge_l: f64,
    }

    #[test]
    fn texts_score_as_in_the_papers_code() {
        let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/mttl_oracle.json");
        let Ok(text) = std::fs::read_to_string(oracle) else {
            return eprintln!("skipped: no ../shared");
        };
        let oracle: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases: Vec<Case> = serde_json::from_value(oracle["text_metrics"].clone()).unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            let found = 100.0 * rouge_l(&case.pred, &case.refs).unwrap();
            assert!((found - case.rouge_l).abs() < 1e-4, "{}: {found}", case.pred);
        }
    }
}
