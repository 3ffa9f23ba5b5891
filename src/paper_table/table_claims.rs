//! Verdicts on the claims of a table.

use crate::paper_table::table_scores::{TableColumn, TableScores};
use crate::paper_table::table_spec::{ClaimSpec, TableSpec, TestableSpec};
use lorakit_eval::{PairedDifference, Verdict};
use serde::Serialize;

/// A claim with what the scores say of it.
#[derive(Serialize)]
pub struct JudgedClaim<'a> {
    /// The claim as a sentence.
    pub text: &'a str,
    /// The label of the better row.
    pub better: &'a str,
    /// The label of the other.
    pub worse: &'a str,
    /// The column that decides.
    pub column: String,
    /// How much better it is; none where rows have no task in common.
    pub gain: Option<PairedDifference>,
    /// None where there is no gain.
    pub verdict: Option<Verdict>,
}

/// Judges all claims.
pub fn judge<'a>(spec: &'a TableSpec, scores: &TableScores) -> Vec<JudgedClaim<'a>> {
    let judge = |claim: &'a ClaimSpec| {
        let column = scores.column(claim.column.as_deref());
        let testable = spec.testable.as_ref().is_none_or(|rows| is_testable(rows, scores, column));
        let gain = gain(scores, &claim.better, &claim.worse, column);
        JudgedClaim {
            text: &claim.text,
            better: &claim.better,
            worse: &claim.worse,
            column: scores.shown(column).0.to_owned(),
            gain,
            verdict: gain.map(|gain| Verdict::of(&gain, testable)),
        }
    };
    spec.claims.iter().map(judge).collect()
}

/// Whether the own experts beat everything that they must by two standard errors. A row without scores in the column, as
/// chance has no loss, is not asked for.
fn is_testable(rows: &TestableSpec, scores: &TableScores, column: TableColumn) -> bool {
    let mut gains = rows.beats.iter().filter_map(|beaten| gain(scores, &rows.own, beaten, column)).peekable();
    gains.peek().is_some() && gains.all(|gain| gain.is_clearly_positive())
}

fn gain(scores: &TableScores, better: &str, worse: &str, column: TableColumn) -> Option<PairedDifference> {
    PairedDifference::of(&scores.gains(scores.row(better)?, scores.row(worse)?, column))
}
