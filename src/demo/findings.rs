//! What can be said of the demo's scores, in a sentence each: what is seen, and what is not.

use super::lineup::{Contender, Summary, shown};
use super::method::Found;
use lorakit_cluster::Space;
use lorakit_eval::Score;

/// The claims, the papers' and lorakit's own, that the demo can look at: a line of the table against another, in words.
const CLAIMS: [(&str, &str, &str); 7] = [
    ("private, oracle", "base", "An expert knows its own task better than the base does"),
    ("private, arrow", "private, uniform", "Arrow chooses better among private experts than averaging them does"),
    (
        "private, evidence",
        "private, arrow",
        "Choosing by the evidence of the whole prompt is better than Arrow's choice per token",
    ),
    ("MBC, oracle", "joint", "An expert per cluster serves its tasks better than one for all tasks"),
    ("MBC, arrow", "MBC, uniform", "Arrow chooses better among cluster experts than averaging them does"),
    ("MBC, arrow", "private, arrow", "Arrow is better over clusters than over private experts"),
    ("MBC, uniform", "joint", "The mean of cluster experts is better than one expert for all tasks"),
];

/// Every sentence.
pub fn sentences(contenders: &[Contender], found: &Found) -> Vec<String> {
    let mut sentences = vec![clusters(found)];
    for (better, worse, claim) in CLAIMS {
        let line = |label| contenders.iter().find(|c| c.label == label);
        let (Some(better), Some(worse)) = (line(better), line(worse)) else { continue };
        sentences.extend(judged(claim, "trained tasks", better.label, better.training, worse.label, worse.training));
        sentences.extend(judged(claim, "held-out tasks", better.label, better.held_out, worse.label, worse.held_out));
    }
    sentences
}

fn clusters(found: &Found) -> String {
    let name = |space| match space {
        Space::Parameters => "as published, on A and B",
        Space::Change => "on A - A0 and B",
        Space::Delta => "on the deltas",
    };
    let indexes: Vec<String> =
        found.indexes.iter().map(|(space, index)| format!("{index:.2} {}", name(*space))).collect();
    format!("Clusters against the true families, adjusted Rand index (1: the same, 0: chance): {}.", indexes.join(", "))
}

/// A claim held against two lines: seen where the difference is more than two standard errors.
fn judged(claim: &str, tasks: &str, a: &str, left: Option<Summary>, b: &str, right: Option<Summary>) -> Option<String> {
    let (left, right) = (left?.exact_match, right?.exact_match);
    let verdict = match difference(left, right) {
        Some(d) if d > 2.0 => "seen",
        Some(d) if d < -2.0 => "not seen, rather the opposite",
        _ => "not seen, the difference is within two standard errors",
    };
    Some(format!("{claim}, on {tasks}: {verdict} ({a} {}, {b} {}).", shown(left, true), shown(right, true)))
}

/// The difference in its standard errors; None where they are not known.
fn difference(left: Score, right: Score) -> Option<f64> {
    let error = (left.stderr?.powi(2) + right.stderr?.powi(2)).sqrt();
    let by = left.value - right.value;
    Some(if error > 0.0 { by / error } else { by * f64::INFINITY }).filter(|d| !d.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_seen_beyond_two_standard_errors_only() {
        let summary = |value: f64| {
            let score = Score { value, stderr: Some(0.01) };
            Some(Summary { exact_match: score, loss: score })
        };
        let judge = |a, b| judged("X", "tasks", "a", summary(a), "b", summary(b)).unwrap_or_default();
        assert!(judge(0.50, 0.40).contains(": seen"));
        assert!(judge(0.50, 0.49).contains("within two standard errors"));
        assert!(judge(0.40, 0.50).contains("the opposite"));
    }
}
