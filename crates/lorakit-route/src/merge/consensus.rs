//! How the experts' values become one: sums, means, and sums of those that agree on a sign.

use super::recipe::{Ballot, Consensus, Divide};
use std::fmt;
use std::str::FromStr;

/// How the sign of a value is elected; the setting `sign`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Election {
    /// By the sum of the values.
    #[default]
    Total,
    /// By the number of each sign.
    Frequency,
}

/// Merges a row: `rows` holds each expert's sparse values, `weights` their weights, `total` the sum of all weights.
pub(super) fn merge_row(
    consensus: Consensus,
    election: Election,
    (weights, total): (&[f64], f64),
    rows: &[Vec<f64>],
    out: &mut [f64],
) {
    match consensus {
        Consensus::Sum => sum(weights, 1.0, rows, out),
        Consensus::Mean => sum(weights, 1.0 / divisor(total), rows, out),
        Consensus::Elected(ballot, divide) => {
            for (column, out) in out.iter_mut().enumerate() {
                let values = || rows.iter().zip(weights).map(|(row, weight)| (row[column], *weight));
                let vote = |(value, weight): (f64, f64)| match ballot {
                    Ballot::Plain => value,
                    Ballot::Weighted => value * weight,
                };
                let plus = elects_plus(election, values().map(vote));
                // A zero has no sign and never agrees.
                let agree = |pair: &(f64, f64)| if plus { vote(*pair) > 0.0 } else { vote(*pair) < 0.0 };
                let (mut elected, mut count, mut weight_sum) = (0.0, 0.0, 0.0);
                for (value, weight) in values().filter(agree) {
                    elected += value * weight;
                    count += 1.0;
                    weight_sum += weight;
                }
                *out = match divide {
                    Divide::None => elected,
                    Divide::Count => elected / f64::max(count, 1.0),
                    Divide::Weights => elected / divisor(weight_sum),
                };
            }
        }
    }
}

fn sum(weights: &[f64], factor: f64, rows: &[Vec<f64>], out: &mut [f64]) {
    out.fill(0.0);
    for (row, weight) in rows.iter().zip(weights) {
        out.iter_mut().zip(row).for_each(|(out, value)| *out += factor * weight * value);
    }
}

fn elects_plus(election: Election, votes: impl Iterator<Item = f64>) -> bool {
    let sum: f64 = match election {
        Election::Total => votes.sum(),
        Election::Frequency => votes.map(|vote| if vote == 0.0 { 0.0 } else { vote.signum() }).sum(),
    };
    sum >= 0.0
}

/// A sum of weights to divide by: 1 where it is nearly zero, as mergekit has it.
pub(super) fn divisor(weights: f64) -> f64 {
    if weights.abs() < 1e-8 { 1.0 } else { weights }
}

impl FromStr for Election {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "total" => Ok(Self::Total),
            "frequency" => Ok(Self::Frequency),
            _ => Err("total or frequency"),
        }
    }
}

impl fmt::Display for Election {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Total => "total",
            Self::Frequency => "frequency",
        })
    }
}
