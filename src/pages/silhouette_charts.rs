//! Silhouette charts as SVG: one value per expert, and one mean per number of clusters.

use super::label::shortened;
use super::markup::render;
use anyhow::Result;
use lorakit_cluster::{ClusterReport, CurvePoint};
use minijinja::Value;
use serde::Serialize;

const WIDTH: f64 = 440.0;
const LEFT: f64 = 64.0;

/// The largest number of bars. Of more experts, every second one has a bar, or every third, and so on: they stand in the order
/// of their silhouettes, so that the outline stays the same.
const LARGEST: usize = 2000;

#[derive(Serialize)]
struct SilhouettePlot {
    /// A bar stands for this many experts.
    every: usize,
    width: f64,
    height: f64,
    label_x: f64,
    zero: f64,
    bottom: f64,
    clusters: Vec<ClusterBars>,
    ticks: Vec<Tick>,
}

#[derive(Serialize)]
struct ClusterBars {
    name: String,
    y: f64,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    class: &'static str,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    expert: String,
    silhouette: f64,
}

/// A labeled position on an axis, in pixels.
#[derive(Serialize)]
struct Tick {
    at: f64,
    value: f64,
}

/// One bar per expert, grouped by cluster, best first (Rousseeuw, 1987).
pub fn silhouette_plot(clusters: &[ClusterReport]) -> Result<Value> {
    let experts: usize = clusters.iter().map(|cluster| cluster.members.len()).sum();
    let every = experts.div_ceil(LARGEST).max(1);
    let n: usize = clusters.iter().map(|cluster| cluster.members.len().div_ceil(every)).sum();
    let bar = (560.0 / n.max(1) as f64).clamp(1.5, 14.0);
    let gap = 10.0;
    let values = || clusters.iter().flat_map(|cluster| cluster.members.iter().map(|member| member.silhouette));
    let (low, high) = (values().fold(0.0, f64::min), values().fold(0.05, f64::max));
    let scale = |value: f64| LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 16.0);
    let zero = scale(0.0);
    let mut y = 4.0;
    let mut drawn = Vec::new();
    for (cluster, shade) in clusters.iter().zip(["bar", "bar2"].into_iter().cycle()) {
        let middle = y + bar * cluster.members.len().div_ceil(every) as f64 / 2.0;
        let mut bars = Vec::new();
        for member in cluster.members.iter().step_by(every) {
            let end = scale(member.silhouette);
            bars.push(Bar {
                class: if member.silhouette < 0.0 { "bad" } else { shade },
                x: zero.min(end),
                y,
                width: (end - zero).abs().max(0.8),
                height: if bar < 4.0 { bar } else { bar - 1.0 },
                expert: member.expert.clone(),
                silhouette: member.silhouette,
            });
            y += bar;
        }
        drawn.push(ClusterBars { name: shortened(&cluster.name), y: middle, bars });
        y += gap;
    }
    let is_shown = |value: &f64| *value == 0.0 || *value < -0.05 * high || *value > 0.0;
    let ticks = [low, 0.0, high].into_iter().filter(is_shown).map(|value| Tick { at: scale(value), value }).collect();
    let height = bar * n as f64 + gap * clusters.len() as f64 + 30.0;
    let plot =
        SilhouettePlot { every, width: WIDTH, height, label_x: LEFT - 10.0, zero, bottom: y, clusters: drawn, ticks };
    render(include_str!("silhouette_plot.html"), &plot)
}

#[derive(Serialize)]
struct CurvePlot {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    middle: f64,
    lines: Vec<Tick>,
    points: Vec<Dot>,
}

#[derive(Serialize)]
struct Dot {
    class: &'static str,
    radius: u32,
    x: f64,
    y: f64,
    k: usize,
    silhouette: f64,
    labeled: bool,
}

/// The mean silhouette for each number of clusters, with the used and the suggested one marked.
pub fn curve_plot(curve: &[CurvePoint], used: usize, suggested: Option<usize>) -> Result<Value> {
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else { return Ok(Value::from("")) };
    let height = 220.0;
    let (low, high) = curve
        .iter()
        .fold((0f64, 0.01f64), |(low, high), point| (low.min(point.silhouette), high.max(point.silhouette)));
    let steps = (last.k - first.k).max(1) as f64;
    let x = |k: usize| LEFT + (k - first.k) as f64 / steps * (WIDTH - LEFT - 24.0);
    let y = |value: f64| 20.0 + (high - value) / (high - low) * (height - 64.0);
    let every = curve.len().div_ceil(12);
    let dot = |(at, point): (usize, &CurvePoint)| {
        let (class, radius) = if Some(point.k) == suggested {
            ("best", 6)
        } else if point.k == used {
            ("used", 5)
        } else {
            ("dot", 3)
        };
        let labeled = at % every == 0 || class != "dot";
        let (x, y) = (x(point.k), y(point.silhouette));
        Dot { class, radius, x, y, k: point.k, silhouette: point.silhouette, labeled }
    };
    let line = |value: f64| Tick { at: y(value), value };
    let plot = CurvePlot {
        width: WIDTH,
        height,
        left: LEFT,
        right: WIDTH - 8.0,
        middle: f64::midpoint(LEFT, WIDTH),
        lines: [low, f64::midpoint(low, high), high].map(line).into(),
        points: curve.iter().enumerate().map(dot).collect(),
    };
    render(include_str!("curve_plot.html"), &plot)
}
