//! Scores over a number, such as that of clusters: the rows of a table that have an `x`, a curve for each series.

use crate::pages::label::printable;
use crate::pages::markup::render;
use crate::pages::palette::color;
use crate::paper_table::table_scores::{TableColumn, TableScores};
use crate::paper_table::table_spec::{RowSpec, TableSpec};
use crate::plots::axis::{Axis, AxisTick};
use crate::plots::plot_frame::{LINE, LegendEntry, MARGIN, PlotFrame, WIDTH};
use crate::plots::score_plot::{spread, whisker};
use anyhow::Result;
use lorakit_eval::Score;
use serde::Serialize;

/// Height in pixels of a panel's axes.
const HEIGHT: f64 = 190.0;

/// Pixels left of the axes, for the labels of scores.
const LEFT: f64 = 52.0;

/// An axis is logarithmic if its numbers span this factor.
const LOGARITHMIC: f64 = 8.0;

#[derive(Serialize)]
struct CurvePanel {
    title: String,
    margin: f64,
    title_y: f64,
    left: f64,
    right: f64,
    bottom: f64,
    scores: Vec<AxisTick>,
    numbers: Vec<AxisTick>,
    /// The title of the axis of numbers.
    axis: String,
    curves: Vec<SeriesCurve>,
}

#[derive(Serialize)]
struct SeriesCurve {
    series: String,
    color: &'static str,
    points: Vec<CurveScore>,
}

#[derive(Serialize)]
struct CurveScore {
    x: f64,
    y: f64,
    whisker: Option<[f64; 2]>,
    number: String,
    score: String,
}

/// Rows of one series: their numbers in `rows`, ascending by x.
struct Series<'a> {
    name: &'a str,
    rows: Vec<(usize, f64)>,
}

/// The document, with a panel for each of the table's deciding columns; none if no row has an x.
pub fn svg(spec: &TableSpec, scores: &TableScores) -> Result<Option<String>> {
    let series = series(spec);
    if series.is_empty() {
        return Ok(None);
    }
    let named = series.iter().enumerate().filter(|(_, series)| !series.name.is_empty());
    let frame = PlotFrame {
        title: &spec.title,
        width: WIDTH,
        note: &format!("Means over tasks; lines are two standard errors over {} to either side.", scores.error_over()),
        legend: named.map(|(at, s)| LegendEntry { name: printable(s.name), color: color(at) }).collect(),
    };
    let mut top = frame.top();
    let mut panels = Vec::new();
    for column in scores.deciding() {
        panels.push(panel((spec, scores, column), &series, top));
        top += LINE + HEIGHT + 46.0;
    }
    let body = render(include_str!("curve_panels.svg"), &serde_json::json!({ "panels": panels }))?;
    frame.svg(body, top - 8.0).map(Some)
}

/// The series in the order of the rows.
fn series(spec: &TableSpec) -> Vec<Series<'_>> {
    let mut all: Vec<Series> = Vec::new();
    for (at, row) in spec.rows.iter().enumerate() {
        let Some(x) = row.x else { continue };
        match all.iter_mut().find(|series| series.name == row.series) {
            Some(series) => series.rows.push((at, x)),
            None => all.push(Series { name: &row.series, rows: vec![(at, x)] }),
        }
    }
    all.iter_mut().for_each(|series| series.rows.sort_by(|a, b| a.1.total_cmp(&b.1)));
    all
}

fn panel((spec, scores, column): (&TableSpec, &TableScores, TableColumn), series: &[Series], top: f64) -> CurvePanel {
    let digits = scores.shown(column).1.digits;
    let (first, bottom) = (top + LINE + 8.0, top + LINE + 8.0 + HEIGHT);
    let cells = || series.iter().flat_map(|series| &series.rows).filter_map(|(row, _)| scores.cell(*row, column));
    let vertical = Axis::of(cells().flat_map(spread), [bottom, first]);
    let numbers = NumberAxis::of(spec.rows.iter().filter_map(|row: &RowSpec| row.x).collect());
    let point = |(row, x): &(usize, f64)| {
        let score: Score = scores.cell(*row, column)?;
        Some(CurveScore {
            x: numbers.at(*x)?,
            y: vertical.at(score.value)?,
            whisker: whisker(&vertical, score),
            number: x.to_string(),
            score: format!("{:.digits$}", score.value),
        })
    };
    let curve = |(at, series): (usize, &Series)| SeriesCurve {
        series: printable(series.name),
        color: color(at),
        points: series.rows.iter().filter_map(&point).collect(),
    };
    CurvePanel {
        title: scores.heading(column),
        margin: MARGIN,
        title_y: top + LINE / 2.0,
        left: LEFT,
        right: WIDTH - MARGIN,
        bottom,
        scores: vertical.ticks(),
        numbers: numbers.ticks(),
        axis: printable(&spec.x_axis),
        curves: series.iter().enumerate().map(curve).collect(),
    }
}

/// The horizontal axis: the numbers of the rows are its ticks.
struct NumberAxis {
    numbers: Vec<f64>,
    is_logarithmic: bool,
}

impl NumberAxis {
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
        let (first, last) = (numbers.first().copied(), numbers.last().copied());
        let is_logarithmic = first.zip(last).is_some_and(|(first, last)| first > 0.0 && last >= LOGARITHMIC * first);
        Self { numbers, is_logarithmic }
    }

    /// The position of a number in pixels.
    fn at(&self, number: f64) -> Option<f64> {
        let scaled = |number: f64| if self.is_logarithmic { number.ln() } else { number };
        let (first, last) = (scaled(*self.numbers.first()?), scaled(*self.numbers.last()?));
        let share = if last > first { (scaled(number) - first) / (last - first) } else { 0.5 };
        Some(LEFT + 16.0 + share * (WIDTH - MARGIN - 16.0 - LEFT - 16.0))
    }

    /// The numbers whose labels do not run into the one before.
    fn ticks(&self) -> Vec<AxisTick> {
        let mut ticks: Vec<AxisTick> = Vec::new();
        for number in &self.numbers {
            let label = number.to_string();
            let room = 6.0 * label.chars().count() as f64 + 6.0;
            let Some(at) = self.at(*number) else { continue };
            if ticks.last().is_none_or(|last| at - last.at >= room) {
                ticks.push(AxisTick { at, label });
            }
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_that_span_orders_of_magnitude_stand_at_their_logarithms() {
        let wide = NumberAxis::of(vec![256.0, 1.0, 16.0, 16.0]);
        let at = |axis: &NumberAxis, number: f64| axis.at(number).unwrap();
        assert!((at(&wide, 16.0) - f64::midpoint(at(&wide, 1.0), at(&wide, 256.0))).abs() < 1e-9);
        let narrow = NumberAxis::of(vec![0.0, 2.0, 4.0]);
        assert!((at(&narrow, 2.0) - f64::midpoint(at(&narrow, 0.0), at(&narrow, 4.0))).abs() < 1e-9);
        let labels: Vec<String> = wide.ticks().into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["1", "16", "256"]);
        assert_eq!(NumberAxis::of(vec![7.0]).ticks().len(), 1);
        assert!(NumberAxis::of(Vec::new()).at(1.0).is_none());
    }
}
