//! Verdicts on the claims of a table.

use crate::paper_table::table_scores::{TableColumn, TableScores};
use crate::paper_table::table_spec::{ClaimSpec, TableSpec, TestableSpec};
use crate::paper_table::task_families::TaskFamilies;
use lorakit_eval::{PairedDifference, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

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
    /// The decimals of its gains.
    #[serde(skip)]
    pub digits: usize,
    /// What its gains are paired by.
    #[serde(skip)]
    pub unit: GainUnit,
    /// How much better it is; none where rows have no task in common.
    pub gain: Option<PairedDifference>,
    /// The gain on each task (under the mean, in each column), the mean over seeds.
    pub by_task: BTreeMap<String, f64>,
    /// None where there is no gain.
    pub verdict: Option<Verdict>,
}

/// What the gains of a claim are paired by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum GainUnit {
    /// The tasks of one column.
    Task,
    /// The columns of their mean.
    Column,
}

impl GainUnit {
    /// The singular.
    pub fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Column => "column",
        }
    }
}

/// The units of the claims that have a gain: at least one, tasks before columns.
pub fn units(claims: &[JudgedClaim]) -> Vec<GainUnit> {
    let is_used = |unit: &GainUnit| claims.iter().any(|claim| claim.gain.is_some() && claim.unit == *unit);
    let used: Vec<GainUnit> = [GainUnit::Task, GainUnit::Column].into_iter().filter(is_used).collect();
    if used.is_empty() { vec![GainUnit::Task] } else { used }
}

/// The fewest decimals of a gain, which may be small beside the scores.
const GAIN_DIGITS: usize = 2;

/// Judges all claims, by families where the table names them.
pub fn judge<'a>(spec: &'a TableSpec, scores: &TableScores, families: Option<&TaskFamilies>) -> Vec<JudgedClaim<'a>> {
    let judged = ClaimData { scores, families };
    let judge = |claim: &'a ClaimSpec| {
        let column = scores.column(claim.column.as_deref());
        let decide = claim.testable.as_ref().or(spec.testable.as_ref());
        let testable = decide.is_none_or(|rows| judged.is_testable(rows, column));
        let gains = judged.gains((&claim.better, &claim.worse), column);
        let gain = judged.paired(&gains);
        let mean = |(task, seeds): (String, Vec<f64>)| (task, seeds.iter().sum::<f64>() / seeds.len() as f64);
        JudgedClaim {
            text: &claim.text,
            better: &claim.better,
            worse: &claim.worse,
            column: scores.shown(column).0.to_owned(),
            digits: scores.shown(column).1.digits.max(GAIN_DIGITS),
            unit: if matches!(column, TableColumn::Mean) { GainUnit::Column } else { GainUnit::Task },
            gain,
            by_task: gains.into_iter().map(mean).collect(),
            verdict: gain.map(|gain| Verdict::of(&gain, testable)),
        }
    };
    spec.claims.iter().map(judge).collect()
}

/// What claims are judged by.
struct ClaimData<'a> {
    scores: &'a TableScores<'a>,
    families: Option<&'a TaskFamilies>,
}

impl ClaimData<'_> {
    /// Whether the own experts beat everything that they must by two standard errors. A row without scores in the column,
    /// as chance has no loss, is not asked for.
    fn is_testable(&self, rows: &TestableSpec, column: TableColumn) -> bool {
        let gain = |beaten: &String| self.paired(&self.gains((&rows.own, beaten), column));
        let mut gains = rows.beats.iter().filter_map(gain).peekable();
        gains.peek().is_some() && gains.all(|gain| gain.is_clearly_positive())
    }

    /// How much better one row is than another: by task, then by seed.
    fn gains(&self, (better, worse): (&str, &str), column: TableColumn) -> BTreeMap<String, Vec<f64>> {
        let rows = self.scores.row(better).zip(self.scores.row(worse));
        rows.map_or_else(BTreeMap::new, |(better, worse)| self.scores.gains(better, worse, column))
    }

    fn paired(&self, gains: &BTreeMap<String, Vec<f64>>) -> Option<PairedDifference> {
        match self.families {
            None => PairedDifference::of(&gains.values().cloned().collect::<Vec<_>>()),
            Some(families) => PairedDifference::of_families(&families.group(gains.clone())),
        }
    }
}
