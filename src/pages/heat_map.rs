//! The cosine similarity of all experts as an SVG heat map in cluster order.

use super::label::{shortened, widest};
use super::markup::render;
use anyhow::Result;
use lorakit_cluster::{ClusteringReport, Similarity};
use minijinja::Value;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Shades per sign. One path per shade keeps a map of 256 experts (65,536 cells) small and quick to draw.
const SHADES: i32 = 40;

/// Largest side of the map in pixels.
const SIDE: f64 = 720.0;

/// The largest number of rows and columns. A map of more experts has a cell for several: a page of 10,000 experts would
/// have 100 million cells.
const LARGEST: usize = 512;

/// Number of experts up to which their names fit beside the rows.
const NAMED: usize = 64;

#[derive(Serialize)]
struct HeatMap {
    experts: usize,
    /// Whether a cell stands for several experts.
    averaged: bool,
    width: f64,
    height: f64,
    left: f64,
    cell: f64,
    shades: Vec<Shade>,
    frames: Vec<Frame>,
    /// Where the names of clusters stand, and which end of them.
    frame_x: f64,
    frame_anchor: &'static str,
    names: Vec<Name>,
    name_size: f64,
    legend: Legend,
}

/// All cells of one shade.
#[derive(Serialize)]
struct Shade {
    color: String,
    path: String,
}

/// The block of a cluster on the diagonal, with its name where it fits.
#[derive(Serialize)]
struct Frame {
    at: f64,
    size: f64,
    middle: f64,
    name: Option<String>,
}

#[derive(Serialize)]
struct Name {
    y: f64,
    text: String,
}

#[derive(Serialize)]
struct Legend {
    y: f64,
    width: f64,
    limit: f64,
    steps: Vec<LegendStep>,
    step_width: f64,
}

#[derive(Serialize)]
struct LegendStep {
    x: f64,
    color: String,
}

/// The heat map of `similarity`, with the experts in the order of the report's clusters and a frame around each cluster.
pub fn similarity_map(report: &ClusteringReport, similarity: &Similarity) -> Result<Value> {
    let indices: BTreeMap<&str, usize> = similarity.names().iter().map(String::as_str).zip(0..).collect();
    let members = report.clusters.iter().flat_map(|cluster| &cluster.members);
    let order: Vec<usize> = members.filter_map(|member| indices.get(member.expert.as_str()).copied()).collect();
    let sizes = report.clusters.iter().map(|cluster| (cluster.name.as_str(), cluster.members.len()));
    let n = order.len();
    let cells = Cells::of(similarity, &order);
    let cell = (SIDE / cells.count as f64).min(30.0);
    let side = cell * cells.count as f64;
    let limit = cells.limit();
    let named = n <= NAMED;
    let names: Vec<String> = order.iter().map(|expert| shortened(&similarity.names()[*expert])).collect();
    let (left, right) = if named { (label_width(&names), 52.0) } else { (52.0, 8.0) };
    let name = |(row, text): (usize, String)| Name { y: (row as f64 + 0.5) * cell, text };
    let map = HeatMap {
        experts: n,
        averaged: cells.count < n,
        width: left + side + right,
        height: side + 64.0,
        left,
        cell,
        shades: cells.shades(limit),
        frames: frames(sizes, side / n as f64),
        frame_x: if named { side + 10.0 } else { -10.0 },
        frame_anchor: if named { "start" } else { "end" },
        names: if named { names.into_iter().enumerate().map(name).collect() } else { Vec::new() },
        name_size: (cell * 0.8).clamp(7.0, 12.0),
        legend: legend(side, limit),
    };
    render(include_str!("heat_map.html"), &map)
}

/// The cells of the map, row by row: cosines, or of many experts means over those of neighbors.
struct Cells {
    count: usize,
    cosines: Vec<f64>,
}

impl Cells {
    fn of(similarity: &Similarity, order: &[usize]) -> Self {
        let (n, count) = (order.len(), order.len().min(LARGEST));
        let experts = |cell: usize| &order[cell * n / count..(cell + 1) * n / count];
        let mean = |row: usize, column: usize| {
            let pairs = experts(row).iter().flat_map(|i| experts(column).iter().map(move |j| (*i, *j)));
            let sum: f64 = pairs.map(|(i, j)| similarity.at(i, j)).sum();
            sum / (experts(row).len() * experts(column).len()) as f64
        };
        let cosines = (0..count * count).map(|at| mean(at / count, at % count)).collect();
        Self { count, cosines }
    }

    /// The cosine of the deepest shade: the largest between two different experts, so that small differences show.
    fn limit(&self) -> f64 {
        let others = self.cosines.iter().enumerate().filter(|(at, _)| at / self.count != at % self.count);
        let largest = others.map(|(_, cosine)| cosine.abs()).fold(0.0, f64::max);
        // Rounded up to hundredths, and never zero.
        ((largest * 100.0).ceil() / 100.0).clamp(0.01, 1.0)
    }

    /// Cells of one unit, grouped by shade; a run of one shade in a row is one rectangle.
    fn shades(&self, limit: f64) -> Vec<Shade> {
        let mut paths = vec![String::new(); (2 * SHADES + 1) as usize];
        for (row, cosines) in self.cosines.chunks(self.count).enumerate() {
            let shades: Vec<i32> = cosines.iter().map(|cosine| shade(*cosine, limit)).collect();
            let mut column = 0;
            for run in shades.chunk_by(|x, y| x == y) {
                // Writing to a String does not fail.
                let _ = write!(paths[(run[0] + SHADES) as usize], "M{column} {row}h{len}v1h-{len}z", len = run.len());
                column += run.len();
            }
        }
        let used = (-SHADES..=SHADES).zip(paths).filter(|(_, path)| !path.is_empty());
        used.map(|(shade, path)| Shade { color: color(shade), path }).collect()
    }
}

fn shade(cosine: f64, limit: f64) -> i32 {
    (cosine / limit * f64::from(SHADES)).round().clamp(f64::from(-SHADES), f64::from(SHADES)) as i32
}

/// White at 0, through teal to deep blue above, through amber to brown below.
fn color(shade: i32) -> String {
    let stops: [[f64; 3]; 4] = match shade {
        0.. => [[250.0, 251.0, 252.0], [151.0, 208.0, 205.0], [46.0, 134.0, 171.0], [18.0, 44.0, 98.0]],
        _ => [[250.0, 251.0, 252.0], [246.0, 214.0, 150.0], [222.0, 140.0, 60.0], [122.0, 58.0, 16.0]],
    };
    let at = f64::from(shade.abs()) / f64::from(SHADES) * 3.0;
    let from = (at as usize).min(2);
    let mix = |channel: usize| {
        let (low, high) = (stops[from][channel], stops[from + 1][channel]);
        (low + (high - low) * (at - from as f64)).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

/// A frame around each cluster's block, from the clusters' names and sizes.
fn frames<'a>(clusters: impl Iterator<Item = (&'a str, usize)>, cell: f64) -> Vec<Frame> {
    let mut start = 0;
    let frame = |(name, len): (&str, usize)| {
        let (at, size) = (start as f64 * cell, len as f64 * cell);
        start += len;
        Frame { at, size, middle: at + size / 2.0, name: (size >= 9.0).then(|| shortened(name)) }
    };
    clusters.map(frame).collect()
}

fn legend(side: f64, limit: f64) -> Legend {
    let width = side.min(280.0);
    let step = width / f64::from(2 * SHADES + 1);
    let steps = (-SHADES..=SHADES).enumerate();
    let steps = steps.map(|(at, shade)| LegendStep { x: at as f64 * step, color: color(shade) }).collect();
    Legend { y: side + 16.0, width, limit, steps, step_width: step + 0.5 }
}

/// The margin that the longest name needs.
fn label_width(names: &[String]) -> f64 {
    20.0 + 6.6 * widest(names) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_adapter::{Adapter, LowRank, Matrix};
    use lorakit_cluster::{ComparisonSpace, ExpertSet};

    #[test]
    fn colors_run_from_white_to_the_deepest_shade() {
        assert_eq!((color(0), color(SHADES), color(-SHADES)), ("#fafbfc".into(), "#122c62".into(), "#7a3a10".into()));
        assert_eq!((shade(0.5, 0.5), shade(1.0, 0.5), shade(-0.25, 0.5)), (SHADES, SHADES, -SHADES / 2));
    }

    #[test]
    fn names_of_wide_characters_have_room() {
        let width = |name: &str| label_width(&[name.to_owned()]);
        assert_eq!(width("翻訳の課題"), width("abcdefghij"));
    }

    #[test]
    fn cells_of_many_experts_are_means() {
        let count = LARGEST + LARGEST / 2;
        // Two groups of experts, each the same but for a sign between the groups.
        let adapter = |at: usize| {
            let sign = if at < count / 2 { 1.0 } else { -1.0 };
            let (a, b) = (Matrix::new(1, 1, vec![1.0]).unwrap(), Matrix::new(1, 1, vec![sign]).unwrap());
            let update = LowRank::new(a, b, 1.0).unwrap();
            (format!("e{at:04}"), Adapter::new([("layers.0.q_proj".to_owned(), update)].into()))
        };
        let experts = ExpertSet::in_memory((0..count).map(adapter)).unwrap();
        let similarity = Similarity::of(&experts, ComparisonSpace::Delta).unwrap();
        let order: Vec<usize> = (0..count).collect();
        let cells = Cells::of(&similarity, &order);
        assert_eq!((cells.count, cells.cosines.len()), (LARGEST, LARGEST * LARGEST));
        for (at, cosine) in cells.cosines.iter().enumerate() {
            let sides = [at / LARGEST, at % LARGEST].map(|cell| cell < LARGEST / 2);
            assert_eq!(*cosine, if sides[0] == sides[1] { 1.0 } else { -1.0 }, "{at}");
        }
    }
}
