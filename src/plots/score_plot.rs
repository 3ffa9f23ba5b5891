//! The rows of a table side by side: their means, with two standard errors on either side. Rows without any score are left
//! out.

use crate::pages::label::{printable, shortened, widest};
use crate::pages::markup::render;
use crate::pages::palette::color;
use crate::paper_table::markdown_table;
use crate::paper_table::table_scores::{TableColumn, TableScores};
use crate::paper_table::table_spec::{RowSpec, TableSpec};
use crate::plots::axis::{Axis, AxisTick};
use crate::plots::plot_frame::{LINE, LegendEntry, MARGIN, PlotFrame};
use anyhow::Result;
use lorakit_eval::Score;
use serde::Serialize;

/// Width in pixels of the axis.
const AXIS: f64 = 190.0;

/// Height in pixels of a row.
const ROW: f64 = 20.0;

/// Width in pixels of the scores as text.
const SCORES: f64 = 92.0;

#[derive(Serialize)]
struct ScorePanel {
    title: String,
    margin: f64,
    title_y: f64,
    top: f64,
    bottom: f64,
    ticks: Vec<AxisTick>,
    /// Where the scores stand as text.
    text_x: f64,
    marks: Vec<ScoreMark>,
}

#[derive(Serialize)]
struct ScoreMark {
    label: String,
    /// The whole label.
    row: String,
    y: f64,
    x: Option<f64>,
    whisker: Option<[f64; 2]>,
    color: &'static str,
    score: String,
}

/// The document: a panel for each of the table's deciding columns.
pub fn svg(spec: &TableSpec, scores: &TableScores) -> Result<String> {
    let columns = scores.deciding();
    let is_scored = |(at, _): &(usize, &RowSpec)| columns.iter().any(|column| scores.cell(*at, *column).is_some());
    let rows: Vec<(usize, &RowSpec)> = spec.rows.iter().enumerate().filter(is_scored).collect();
    let labels: Vec<String> = rows.iter().map(|(_, row)| shortened(&printable(&row.label))).collect();
    let left = MARGIN + 6.4 * widest(&labels) as f64 + 10.0;
    let sees = categories(&rows);
    let legend = sees
        .iter()
        .enumerate()
        .map(|(at, sees)| LegendEntry { name: format!("sees {}", printable(sees)), color: color(at) });
    let frame = PlotFrame {
        title: &spec.title,
        width: left + AXIS + SCORES + MARGIN,
        note: &format!("Means over tasks; lines are two standard errors over {} to either side.", scores.error_over()),
        legend: legend.collect(),
    };
    let mut top = frame.top();
    let mut panels = Vec::new();
    for column in &columns {
        let panel = panel((&rows, scores, *column), &sees, (left, top));
        top = panel.bottom + LINE + 12.0;
        panels.push(panel);
    }
    frame.svg(render(include_str!("score_plot.svg"), &serde_json::json!({ "panels": panels }))?, top - 8.0)
}

/// What routers see, in the order of the rows.
fn categories<'a>(rows: &[(usize, &'a RowSpec)]) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (_, row) in rows.iter().filter(|(_, row)| !row.sees.is_empty()) {
        if !seen.contains(&row.sees.as_str()) {
            seen.push(&row.sees);
        }
    }
    seen
}

fn panel(
    (rows, scores, column): (&[(usize, &RowSpec)], &TableScores, TableColumn),
    sees: &[&str],
    (left, top): (f64, f64),
) -> ScorePanel {
    let digits = scores.shown(column).1.digits;
    let cells: Vec<Option<Score>> = rows.iter().map(|(row, _)| scores.cell(*row, column)).collect();
    let axis = Axis::of(cells.iter().flatten().flat_map(|score| spread(*score)), [left, left + AXIS]);
    let first = top + LINE + 4.0;
    let mark = |(at, ((_, row), cell)): (usize, (&(usize, &RowSpec), &Option<Score>))| ScoreMark {
        label: shortened(&printable(&row.label)),
        row: printable(&row.label),
        y: first + ROW * (at as f64 + 0.5),
        x: cell.and_then(|score| axis.at(score.value)),
        whisker: cell.and_then(|score| whisker(&axis, score)),
        color: color(sees.iter().position(|known| *known == row.sees).unwrap_or(0)),
        score: markdown_table::cell(*cell, digits),
    };
    ScorePanel {
        title: scores.heading(column),
        margin: MARGIN,
        title_y: top + LINE / 2.0,
        top: first,
        bottom: first + ROW * rows.len() as f64,
        ticks: axis.ticks(),
        text_x: left + AXIS + SCORES,
        marks: rows.iter().zip(&cells).enumerate().map(mark).collect(),
    }
}

/// The ends of a score's line, or the score alone where it has no error.
pub fn spread(score: Score) -> [f64; 2] {
    let error = 2.0 * score.stderr.unwrap_or(0.0);
    [score.value - error, score.value + error]
}

/// The ends of a score's line in pixels; none without an error.
pub fn whisker(axis: &Axis, score: Score) -> Option<[f64; 2]> {
    score.stderr?;
    let [low, high] = spread(score);
    Some([axis.at(low)?, axis.at(high)?])
}
