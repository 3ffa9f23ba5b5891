//! Training loss curves as SVG.

use super::markup::render;
use super::palette::color;
use anyhow::Result;
use minijinja::Value;
use serde::Serialize;

/// One curve.
pub struct LossCurve {
    /// Its name in the legend.
    pub name: String,
    /// One loss per step.
    pub losses: Vec<f64>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 28.0;
const LEGEND: f64 = 110.0;

#[derive(Serialize)]
struct Plot<'a> {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    losses: Vec<LossTick>,
    steps: [StepTick; 2],
    curves: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct LossTick {
    y: f64,
    loss: f64,
}

#[derive(Serialize)]
struct StepTick {
    x: f64,
    anchor: &'static str,
    step: usize,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    color: &'static str,
    /// Where the legend has its name.
    legend_y: f64,
    points: Vec<(f64, f64)>,
}

/// The mean of several curves, step by step, as long as the longest.
pub fn mean(curves: &[Vec<f64>]) -> Vec<f64> {
    let steps = curves.iter().map(Vec::len).max().unwrap_or(0);
    let at = |step| {
        let losses: Vec<f64> = curves.iter().filter_map(|curve| curve.get(step).copied()).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    (0..steps).map(at).collect()
}

/// All curves in one plot, with the loss from zero.
pub fn plot(curves: &[LossCurve]) -> Result<Value> {
    let steps = curves.iter().map(|curve| curve.losses.len()).max().unwrap_or(0).max(2);
    let top = curves.iter().flat_map(|curve| &curve.losses).copied().fold(0.1, f64::max);
    let x = |step: usize| LEFT + (WIDTH - LEFT - LEGEND) * step as f64 / (steps - 1) as f64;
    let y = |loss: f64| 8.0 + (HEIGHT - BOTTOM - 8.0) * (1.0 - loss / top);
    let tick = |at: u32| {
        let loss = top * f64::from(at) / 4.0;
        LossTick { y: y(loss), loss }
    };
    let mut lines = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        let points = curve.losses.iter().enumerate().map(|(step, loss)| (x(step), y(*loss))).collect();
        lines.push(Line { name: &curve.name, color: color(i), legend_y: 16.0 + 18.0 * i as f64, points });
    }
    let step = |step: usize, anchor| StepTick { x: x(step), anchor, step: step + 1 };
    let plot = Plot {
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        right: WIDTH - LEGEND,
        losses: (0..=4).map(tick).collect(),
        steps: [step(0, "start"), step(steps - 1, "end")],
        curves: lines,
    };
    render(include_str!("loss_curves.html"), &plot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_curves_is_as_long_as_the_longest() {
        assert_eq!(mean(&[vec![1.0, 3.0], vec![3.0, 5.0, 7.0]]), [2.0, 4.0, 7.0]);
    }
}
