//! The metrics of tasks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Result, TaskError};

/// A metric of a task. The set is closed; `lorakit-eval` computes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The mean over rows of the mean negative log-likelihood per target token, EOS included. Every task has it.
    Loss,
    /// Choice tasks: the share of rows whose right choice has the highest summed log-likelihood.
    Acc,
    /// Choice tasks: as [`Metric::Acc`], with each sum divided by the choice's length in Unicode code points.
    AccNorm,
    /// Choice tasks: as [`Metric::Acc`], with EOS appended and each sum divided by its number of tokens
    /// (arXiv:2405.11157).
    AccTok,
    /// Text tasks: the share of rows whose generated text equals an accepted answer.
    ExactMatch,
    /// Text tasks: as [`Metric::ExactMatch`], whatever the case, punctuation and white space. It comes with that.
    ExactMatchNormalized,
    /// Text tasks: Rouge-L F1 of the generated text, the best over the accepted answers.
    RougeL,
}

impl Metric {
    /// Every metric, in the order of reports.
    pub const ALL: [Metric; 7] = [
        Metric::Loss,
        Metric::Acc,
        Metric::AccNorm,
        Metric::AccTok,
        Metric::ExactMatch,
        Metric::ExactMatchNormalized,
        Metric::RougeL,
    ];

    /// The name used in task files and in `results.json`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::AccTok => "acc_tok",
            Metric::ExactMatch => "exact_match",
            Metric::ExactMatchNormalized => "exact_match_normalized",
            Metric::RougeL => "rouge_l",
        }
    }

    /// Whether the metric compares the choices of a row.
    pub fn needs_choices(self) -> bool {
        matches!(self, Metric::Acc | Metric::AccNorm | Metric::AccTok)
    }

    /// Whether the metric reads generated text.
    pub fn needs_generation(self) -> bool {
        matches!(self, Metric::ExactMatch | Metric::ExactMatchNormalized | Metric::RougeL)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self> {
        let found = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        found.ok_or_else(|| TaskError::UnknownName {
            what: "metric",
            name: name.to_string(),
            known: Metric::ALL.map(Metric::name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_the_same_in_files_and_on_the_command_line() {
        for metric in Metric::ALL {
            assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
            let json = serde_json::to_string(&metric).unwrap();
            assert_eq!(json, format!("\"{}\"", metric.name()));
        }
        let refused = |name: &str| name.parse::<Metric>().unwrap_err().to_string();
        assert!(refused("bleu").starts_with("unknown metric `bleu`; expected one of loss, acc"));
        assert!(refused("rougel").starts_with("unknown metric `rougel` (did you mean `rouge_l`?); expected one of"));
    }
}
