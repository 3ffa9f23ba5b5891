//! The silhouette of each expert, and of each number of clusters, as SVG.

use std::fmt::Write;

use crate::heat_map::shortened;
use crate::html::escape;
use crate::report::{ClusterReport, CurvePoint};

const WIDTH: f64 = 440.0;
const LEFT: f64 = 64.0;

/// One bar per expert, by cluster, the best fitting first: the classic silhouette plot.
pub(crate) fn silhouette_plot(clusters: &[ClusterReport]) -> String {
    let n: usize = clusters.iter().map(|cluster| cluster.members.len()).sum();
    let bar = (560.0 / n.max(1) as f64).clamp(1.5, 14.0);
    let gap = 10.0;
    let height = bar * n as f64 + gap * clusters.len() as f64 + 30.0;
    let values = || clusters.iter().flat_map(|cluster| cluster.members.iter().map(|member| member.silhouette));
    let (low, high) = (values().fold(0.0, f64::min), values().fold(0.05, f64::max));
    let scale = |value: f64| LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 16.0);
    let mut svg = open(height, "Silhouette of every expert, by cluster");
    let mut y = 4.0;
    for (cluster, shade) in clusters.iter().zip([0, 1].into_iter().cycle()) {
        let middle = y + bar * cluster.members.len() as f64 / 2.0;
        let name = escape(&shortened(&cluster.name));
        let _ = writeln!(
            svg,
            "<text class=\"band\" text-anchor=\"end\" x=\"{:.1}\" y=\"{middle:.1}\">{name}</text>",
            LEFT - 10.0
        );
        for member in &cluster.members {
            let (zero, end) = (scale(0.0), scale(member.silhouette));
            let class = if member.silhouette < 0.0 { "bad" } else { ["bar", "bar2"][shade] };
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" shape-rendering=\"crispEdges\" x=\"{:.1}\" y=\"{y:.2}\" width=\"{:.1}\" height=\"{:.2}\"><title>{}: {:.3}</title></rect>",
                zero.min(end),
                (end - zero).abs().max(0.8),
                if bar < 4.0 { bar } else { bar - 1.0 },
                escape(&member.expert),
                member.silhouette
            );
            y += bar;
        }
        y += gap;
    }
    let zero = scale(0.0);
    let _ = writeln!(svg, "<line class=\"axis\" x1=\"{zero:.1}\" x2=\"{zero:.1}\" y1=\"0\" y2=\"{y:.1}\"/>");
    for value in [low, 0.0, high] {
        if value == 0.0 || value < -0.05 * high || value > 0.0 {
            let _ = writeln!(
                svg,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{value:.2}</text>",
                scale(value),
                y + 10.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The mean silhouette against the number of clusters, with the one used and the one suggested marked.
pub(crate) fn curve_plot(curve: &[CurvePoint], used: usize, suggested: Option<usize>) -> String {
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else { return String::new() };
    let height = 220.0;
    let (low, high) = curve
        .iter()
        .fold((0f64, 0.01f64), |(low, high), point| (low.min(point.silhouette), high.max(point.silhouette)));
    let steps = (last.k - first.k).max(1) as f64;
    let x = |k: usize| LEFT + (k - first.k) as f64 / steps * (WIDTH - LEFT - 24.0);
    let y = |value: f64| 20.0 + (high - value) / (high - low) * (height - 64.0);
    let mut svg = open(height, "Mean silhouette by number of clusters");
    for value in [low, f64::midpoint(low, high), high] {
        let (at, right) = (y(value), WIDTH - 8.0);
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ = writeln!(
            svg,
            "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{value:.2}</text>",
            LEFT - 10.0,
            at + 4.0
        );
    }
    let points: Vec<String> =
        curve.iter().map(|point| format!("{:.1},{:.1}", x(point.k), y(point.silhouette))).collect();
    let _ = writeln!(svg, "<polyline class=\"line\" points=\"{}\"/>", points.join(" "));
    let every = curve.len().div_ceil(12);
    for (at, point) in curve.iter().enumerate() {
        let (cx, cy) = (x(point.k), y(point.silhouette));
        let (class, radius) = if Some(point.k) == suggested {
            ("best", 6.0)
        } else if point.k == used {
            ("used", 5.0)
        } else {
            ("dot", 3.0)
        };
        let _ = writeln!(
            svg,
            "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius}\"><title>k = {}: {:.3}</title></circle>",
            point.k, point.silhouette
        );
        if at % every == 0 || class != "dot" {
            let _ = writeln!(
                svg,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{cx:.1}\" y=\"{:.1}\">{}</text>",
                height - 22.0,
                point.k
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">number of clusters k</text>",
        f64::midpoint(LEFT, WIDTH),
        height - 4.0
    );
    svg.push_str("</svg>\n");
    svg
}

fn open(height: f64, label: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" role=\"img\" aria-label=\"{label}\">\n")
}
