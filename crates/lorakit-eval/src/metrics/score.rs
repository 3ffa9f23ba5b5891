//! Means with their standard errors, and the scores of a task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::sample::Sample;
use crate::truncated_rows::TruncatedRows;

/// The mean of a metric over rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The mean.
    pub value: f64,
    /// The standard error of the mean, `std / sqrt(n)` with the sample standard deviation (`n - 1`), as in
    /// lm-evaluation-harness; None for a single row.
    pub stderr: Option<f64>,
}

impl Score {
    /// The score of the values of rows; None without rows.
    ///
    /// ```
    /// use lorakit_eval::Score;
    ///
    /// let score = Score::mean(&[1.0, 0.0, 1.0, 1.0]).unwrap();
    /// assert_eq!(score, Score { value: 0.75, stderr: Some(0.25) });
    /// ```
    pub fn mean(values: &[f64]) -> Option<Score> {
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
        let stderr = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Some(Score { value, stderr })
    }

    /// The mean of independent scores, such as those of several tasks; None without scores. Its standard error is the root of
    /// the sum of squares of theirs over their number; None if one has none.
    pub fn mean_of_independent(scores: impl IntoIterator<Item = Score>) -> Option<Score> {
        let scores: Vec<Score> = scores.into_iter().collect();
        if scores.is_empty() {
            return None;
        }
        let n = scores.len() as f64;
        let squares: Option<f64> = scores.iter().map(|score| score.stderr.map(|error| error * error)).sum();
        let value = scores.iter().map(|score| score.value).sum::<f64>() / n;
        Some(Score { value, stderr: squares.map(|sum| sum.sqrt() / n) })
    }
}

/// The scores of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskScores {
    /// Number of rows.
    pub n: usize,
    /// Every metric, by its name in `results.json`.
    pub metrics: BTreeMap<String, Score>,
    /// Every row, in file order.
    pub samples: Vec<Sample>,
    /// How many rows do not fit in the base's context.
    pub truncated: TruncatedRows,
}

impl TaskScores {
    /// The means over samples: of each metric over those that have it.
    pub fn of(samples: Vec<Sample>, truncated: TruncatedRows) -> TaskScores {
        let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for sample in &samples {
            for (name, value) in &sample.metrics {
                values.entry(name).or_default().push(*value);
            }
        }
        let score = |(name, values): (&str, Vec<f64>)| Some((name.to_string(), Score::mean(&values)?));
        let metrics = values.into_iter().filter_map(score).collect();
        TaskScores { n: samples.len(), metrics, samples, truncated }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        // python3 -c "import statistics as s; v = [1.5, -2, 0.25, 8]; print(s.mean(v), s.stdev(v) / 2)"
        let score = Score::mean(&[1.5, -2.0, 0.25, 8.0]).unwrap();
        assert!((score.value - 1.9375).abs() < 1e-12);
        assert!((score.stderr.unwrap() - 2.146_642_242_355_876_6).abs() < 1e-12, "{score:?}");
    }

    #[test]
    fn one_row_has_no_standard_error() {
        assert_eq!(Score::mean(&[2.0]), Some(Score { value: 2.0, stderr: None }));
        assert_eq!(Score::mean(&[]), None);
    }

    #[test]
    fn errors_of_the_mean_over_tasks_are_independent() {
        let scores = [(1.0, Some(0.3)), (2.0, Some(0.4))].map(|(value, stderr)| Score { value, stderr });
        assert_eq!(Score::mean_of_independent(scores), Some(Score { value: 1.5, stderr: Some(0.25) }));
        let single = Score { value: 1.0, stderr: None };
        assert_eq!(Score::mean_of_independent([single, scores[0]]), Some(single));
        assert_eq!(Score::mean_of_independent([]), None);
    }
}
