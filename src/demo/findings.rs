//! Which of the papers' claims the demo's scores support, one sentence each.

use super::comparison::{ScoreRow, Summary, score_text};
use super::pipeline::FamilyClusters;
use lorakit_cluster::ComparisonSpace;
use lorakit_eval::Score;

/// Claims of the papers and of lorakit that compare two rows of the table: better, worse, claim.
const CLAIMS: [(&str, &str, &str); 7] = [
    ("private, oracle", "base", "An expert is better on its own task than the base"),
    ("private, arrow", "private, uniform", "Arrow over private experts is better than their mean"),
    (
        "private, evidence",
        "private, arrow",
        "Routing by the evidence of the whole prompt is better than Arrow per token",
    ),
    ("MBC, oracle", "joint", "One expert per cluster is better on its tasks than one expert for all tasks"),
    ("MBC, arrow", "MBC, uniform", "Arrow over cluster experts is better than their mean"),
    ("MBC, arrow", "private, arrow", "Arrow over cluster experts is better than Arrow over private experts"),
    ("MBC, uniform", "joint", "The mean of cluster experts is better than one expert for all tasks"),
];

/// All sentences.
pub fn sentences(rows: &[ScoreRow], clusters: &FamilyClusters) -> Vec<String> {
    let mut sentences = vec![agreement(clusters)];
    for (better, worse, claim) in CLAIMS {
        let row = |label| rows.iter().find(|c| c.label == label);
        let (Some(better), Some(worse)) = (row(better), row(worse)) else { continue };
        sentences.extend(judge(
            &format!("{claim}, on training tasks"),
            (better.label, better.training),
            (worse.label, worse.training),
        ));
        sentences.extend(judge(
            &format!("{claim}, on held-out tasks"),
            (better.label, better.held_out),
            (worse.label, worse.held_out),
        ));
    }
    sentences
}

/// How well the clusters of each space agree with the true families.
fn agreement(clusters: &FamilyClusters) -> String {
    let name = |space| match space {
        ComparisonSpace::Parameters => "on A and B, as published",
        ComparisonSpace::Change => "on A - A0 and B",
        ComparisonSpace::Delta => "on the deltas",
    };
    let indexes: Vec<String> =
        clusters.rand_indices.iter().map(|(space, index)| format!("{index:.2} {}", name(*space))).collect();
    format!(
        "Agreement of clusters and true families, adjusted Rand index (1: identical, 0: chance): {}.",
        indexes.join(", ")
    )
}

/// Judges a claim by two rows: it holds where the difference exceeds two standard errors.
fn judge(claim: &str, (a, left): (&str, Option<Summary>), (b, right): (&str, Option<Summary>)) -> Option<String> {
    let (left, right) = (left?.exact_match, right?.exact_match);
    let verdict = match difference(left, right) {
        Some(d) if d > 2.0 => "holds",
        Some(d) if d < -2.0 => "the opposite holds",
        _ => "undecided, the difference is within two standard errors",
    };
    Some(format!("{claim}: {verdict} ({a} {}, {b} {}).", score_text(left, true), score_text(right, true)))
}

/// The difference in standard errors; None where they are unknown.
fn difference(left: Score, right: Score) -> Option<f64> {
    let error = (left.stderr?.powi(2) + right.stderr?.powi(2)).sqrt();
    let by = left.value - right.value;
    Some(if error > 0.0 { by / error } else { by * f64::INFINITY }).filter(|d| !d.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_beyond_two_standard_errors_only() {
        let summary = |value: f64| {
            let score = Score { value, stderr: Some(0.01) };
            Some(Summary { exact_match: score, loss: score })
        };
        let verdict = |a, b| judge("X", ("a", summary(a)), ("b", summary(b))).unwrap_or_default();
        assert!(verdict(0.50, 0.40).contains(": holds"));
        assert!(verdict(0.50, 0.49).contains("within two standard errors"));
        assert!(verdict(0.40, 0.50).contains("the opposite"));
    }
}
