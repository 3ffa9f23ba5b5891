//! The scores a task may ask for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A score of a task. The set is closed; `lorakit-eval` computes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The mean over rows of the mean negative log-likelihood per target token, EOS included.
    /// Every task has it.
    Loss,
    /// Choice tasks: the choice with the highest summed log-likelihood is the right one.
    Acc,
    /// Choice tasks: as [`Metric::Acc`], each sum divided by the choice's Unicode code points.
    AccNorm,
    /// Choice tasks: as [`Metric::Acc`], with EOS appended and each sum divided by its tokens
    /// (arXiv:2405.11157).
    AccTok,
    /// Text tasks: what is generated equals one of the accepted answers.
    ExactMatch,
    /// Text tasks: Rouge-L F1 of what is generated, the best over the accepted answers.
    RougeL,
}

impl Metric {
    /// Every metric, in the order in which reports list them.
    pub const ALL: [Metric; 6] =
        [Metric::Loss, Metric::Acc, Metric::AccNorm, Metric::AccTok, Metric::ExactMatch, Metric::RougeL];

    /// The name used in task files and in `results.json`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::AccTok => "acc_tok",
            Metric::ExactMatch => "exact_match",
            Metric::RougeL => "rouge_l",
        }
    }

    /// True for the metrics that compare the choices of a row, and so need choices.
    pub fn needs_choices(self) -> bool {
        matches!(self, Metric::Acc | Metric::AccNorm | Metric::AccTok)
    }

    /// True for the metrics that read generated text.
    pub fn needs_generation(self) -> bool {
        matches!(self, Metric::ExactMatch | Metric::RougeL)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let found = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        found.ok_or_else(|| {
            let known = Metric::ALL.map(Metric::name).join(", ");
            anyhow::anyhow!("unknown metric `{name}`; the metrics are {known}")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_metric_is_spelled_alike_in_files_and_in_code() {
        for metric in Metric::ALL {
            assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
            let json = serde_json::to_string(&metric).unwrap();
            assert_eq!(json, format!("\"{}\"", metric.name()));
        }
        assert!("bleu".parse::<Metric>().is_err());
    }
}
