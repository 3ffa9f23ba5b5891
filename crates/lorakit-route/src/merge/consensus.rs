//! Combining the experts' values: sums, means, and sums of values that agree on a sign.

use crate::merge::task_vector_table::{Consensus, Divisor, SignVote};
use serde::{Deserialize, Serialize};

/// How the sign of each value is elected; the setting `sign`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignElection {
    /// By the sum of the values.
    #[default]
    Total,
    /// By the count of each sign.
    Frequency,
}

/// Merges a row: `rows` holds each expert's sparse values, `weights` their weights, `total` the sum of all weights.
pub(super) fn merge_row(
    consensus: Consensus,
    election: SignElection,
    (weights, total): (&[f64], f64),
    rows: &[Vec<f64>],
    out: &mut [f64],
) {
    match consensus {
        Consensus::Sum => sum(weights, 1.0, rows, out),
        Consensus::Mean => sum(weights, 1.0 / divisor(total), rows, out),
        Consensus::Elected(sign_vote, divide) => {
            for (column, out) in out.iter_mut().enumerate() {
                let values = || rows.iter().zip(weights).map(|(row, weight)| (row[column], *weight));
                let vote = |(value, weight): (f64, f64)| match sign_vote {
                    SignVote::Plain => value,
                    SignVote::Weighted => value * weight,
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
                    Divisor::None => elected,
                    Divisor::Count => elected / f64::max(count, 1.0),
                    Divisor::Weights => elected / divisor(weight_sum),
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

fn elects_plus(election: SignElection, votes: impl Iterator<Item = f64>) -> bool {
    let sum: f64 = match election {
        SignElection::Total => votes.sum(),
        SignElection::Frequency => votes.map(|vote| if vote == 0.0 { 0.0 } else { vote.signum() }).sum(),
    };
    sum >= 0.0
}

/// A sum of weights to divide by: 1 if it is nearly zero, as in mergekit.
pub(super) fn divisor(weights: f64) -> f64 {
    if weights.abs() < 1e-8 { 1.0 } else { weights }
}
