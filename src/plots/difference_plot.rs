//! The gains that decide claims: a dot for each task or column, their mean, and its 95 % interval.

use crate::pages::label::printable;
use crate::pages::markup::render;
use crate::paper_table::table_claims::{GainUnit, JudgedClaim, units};
use crate::plots::axis::{Axis, AxisTick};
use crate::plots::plot_frame::{LINE, MARGIN, PlotFrame, TextLine, WIDTH, text_lines};
use anyhow::Result;
use lorakit_eval::{PairedDifference, Verdict};
use serde::Serialize;

/// Height in pixels of the marks of a claim.
const MARKS: f64 = 26.0;

/// What the marks mean.
fn note(claims: &[JudgedClaim]) -> String {
    let units = units(claims);
    let dot = |unit: &GainUnit| match unit {
        GainUnit::Task => "on one task",
        GainUnit::Column => "in one column",
    };
    let dots = units.iter().map(dot).collect::<Vec<_>>().join(" or ");
    let units = units.iter().map(|unit| format!("{}s", unit.name())).collect::<Vec<_>>().join(" or ");
    let by_families = claims.iter().filter_map(|claim| claim.gain).any(|gain| gain.families.is_some());
    let families = if by_families { "families of " } else { "" };
    format!(
        "A dot is the gain {dots}, the mean over seeds; right of zero the claim's better row is better, of a loss too. \
         The large dot is the mean over {units}, the line its 95 % interval over {families}{units} and seeds."
    )
}

#[derive(Serialize)]
struct DifferencePanel {
    title: String,
    margin: f64,
    title_y: f64,
    top: f64,
    bottom: f64,
    zero: Option<f64>,
    ticks: Vec<AxisTick>,
    claims: Vec<ClaimMarks>,
}

#[derive(Serialize)]
struct ClaimMarks {
    text: Vec<TextLine>,
    said: TextLine,
    class: &'static str,
    y: f64,
    tasks: Vec<TaskDot>,
    mean: Option<f64>,
    interval: Option<[f64; 2]>,
}

#[derive(Serialize)]
struct TaskDot {
    x: f64,
    task: String,
    gain: String,
}

/// The document, with a panel for each column that decides a claim; none if no claim has a gain.
pub fn svg(title: &str, claims: &[JudgedClaim]) -> Result<Option<String>> {
    let mut columns: Vec<&str> = Vec::new();
    for claim in claims.iter().filter(|claim| claim.gain.is_some()) {
        if !columns.contains(&claim.column.as_str()) {
            columns.push(&claim.column);
        }
    }
    if columns.is_empty() {
        return Ok(None);
    }
    let frame = PlotFrame { title, width: WIDTH, note: &note(claims), legend: Vec::new() };
    let mut top = frame.top();
    let mut panels = Vec::new();
    for column in columns {
        let panel = panel(column, claims, top);
        top = panel.bottom + LINE + 12.0;
        panels.push(panel);
    }
    let body = render(include_str!("difference_plot.svg"), &serde_json::json!({ "panels": panels }))?;
    frame.svg(body, top - 8.0).map(Some)
}

fn panel(column: &str, claims: &[JudgedClaim], top: f64) -> DifferencePanel {
    let judged: Vec<(&JudgedClaim, PairedDifference)> =
        claims.iter().filter(|claim| claim.column == column).filter_map(|claim| Some((claim, claim.gain?))).collect();
    let values = judged.iter().flat_map(|(claim, gain)| claim.by_task.values().copied().chain(gain.interval));
    let axis = Axis::of(values.chain([0.0]), [MARGIN + 6.0, WIDTH - MARGIN - 6.0]);
    let first = top + LINE + 2.0;
    let mut y = first;
    let mut marks = Vec::new();
    for (claim, gain) in judged {
        let drawn = claim_marks(claim, &gain, &axis, y);
        y = drawn.y + MARKS / 2.0 + 4.0;
        marks.push(drawn);
    }
    DifferencePanel {
        title: format!("gain in {}", printable(column)),
        margin: MARGIN,
        title_y: top + LINE / 2.0,
        top: first,
        bottom: y,
        zero: axis.at(0.0),
        ticks: axis.ticks(),
        claims: marks,
    }
}

fn claim_marks(claim: &JudgedClaim, gain: &PairedDifference, axis: &Axis, top: f64) -> ClaimMarks {
    let text = text_lines(claim.text, top, WIDTH);
    let said_y = top + LINE * (text.len() as f64 + 0.5);
    let verdict = claim.verdict.map_or("not scored".to_owned(), |verdict| verdict.to_string());
    let ([low, high], mean, digits) = (gain.interval, gain.mean, claim.digits);
    let dot = |(task, gain): (&String, &f64)| {
        Some(TaskDot { x: axis.at(*gain)?, task: printable(task), gain: format!("{gain:+.digits$}") })
    };
    let said = format!("{verdict}: {mean:+.digits$}, 95 % from {low:+.digits$} to {high:+.digits$}");
    ClaimMarks {
        text,
        said: TextLine { y: said_y, text: said },
        class: claim.verdict.map_or("undecided", class),
        y: said_y + LINE / 2.0 + MARKS / 2.0,
        tasks: claim.by_task.iter().filter_map(dot).collect(),
        mean: axis.at(mean),
        interval: axis.at(low).zip(axis.at(high)).map(|(low, high)| [low, high]),
    }
}

/// The class of a verdict's marks in the frame's style.
fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Held => "held",
        Verdict::NotHeld => "not_held",
        Verdict::Undecided => "undecided",
        Verdict::NotTestable => "not_testable",
    }
}
