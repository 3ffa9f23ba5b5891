//! The similarity of all experts as one picture: an SVG heat map in the order of the clusters.

use std::fmt::Write;

use crate::Similarity;
use crate::html::escape;

/// Shades per sign. One path per shade keeps a map of 256 experts at 65,536 cells small and quick to draw.
const SHADES: i32 = 40;

/// The side of the map, in pixels, at most.
const SIDE: f64 = 720.0;

/// The most experts whose names still fit beside their rows.
const NAMED: usize = 64;

/// A run of rows that are one cluster.
pub(crate) struct Band<'a> {
    pub name: &'a str,
    pub len: usize,
}

/// The map of `similarity`, rows and columns in `order`, with a frame around each band.
pub(crate) fn heat_map(similarity: &Similarity, order: &[usize], bands: &[Band]) -> String {
    let n = order.len();
    let cell = (SIDE / n as f64).min(30.0);
    let side = cell * n as f64;
    let limit = limit(similarity, order);
    let named = n <= NAMED;
    let left = if named { label_width(similarity, order) } else { 52.0 };
    let right = if named { 52.0 } else { 8.0 };
    let (width, height) = (left + side + right, side + 64.0);
    let mut svg = format!(
        "<svg class=\"map\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" role=\"img\" \
         aria-label=\"Cosine similarity of {n} experts in cluster order\">\n\
         <g transform=\"translate({left:.1} 8)\">\n\
         <g transform=\"scale({cell:.4})\" shape-rendering=\"crispEdges\">\n"
    );
    svg.push_str(&cells(similarity, order, limit));
    svg.push_str("</g>\n");
    svg.push_str(&frames(bands, cell, if named { side + 10.0 } else { -10.0 }, !named));
    if named {
        for (row, expert) in order.iter().enumerate() {
            let name = escape(&shortened(&similarity.names()[*expert]));
            let y = (row as f64 + 0.5) * cell;
            let size = (cell * 0.8).clamp(7.0, 12.0);
            let _ = writeln!(svg, "<text class=\"name\" x=\"-8\" y=\"{y:.1}\" font-size=\"{size:.1}\">{name}</text>");
        }
    }
    svg.push_str(&legend(side, limit));
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// The cosine of the deepest shade: the largest of two different experts, so that small differences show.
fn limit(similarity: &Similarity, order: &[usize]) -> f64 {
    let pairs = order.iter().flat_map(|i| order.iter().map(move |j| (*i, *j)));
    let largest = pairs.filter(|(i, j)| i != j).map(|(i, j)| similarity.at(i, j).abs()).fold(0.0, f64::max);
    // Rounded up to hundredths, and never nothing.
    ((largest * 100.0).ceil() / 100.0).clamp(0.01, 1.0)
}

/// Cells of one unit, grouped by shade; runs of one shade in a row are one rectangle.
fn cells(similarity: &Similarity, order: &[usize], limit: f64) -> String {
    let mut paths = vec![String::new(); (2 * SHADES + 1) as usize];
    for (row, i) in order.iter().enumerate() {
        let shades: Vec<i32> = order.iter().map(|j| shade(similarity.at(*i, *j), limit)).collect();
        let mut column = 0;
        for run in shades.chunk_by(|x, y| x == y) {
            let _ = write!(paths[(run[0] + SHADES) as usize], "M{column} {row}h{len}v1h-{len}z", len = run.len());
            column += run.len();
        }
    }
    let shades = (-SHADES..=SHADES).zip(paths).filter(|(_, path)| !path.is_empty());
    shades.map(|(shade, path)| format!("<path fill=\"{}\" d=\"{path}\"/>\n", colour(shade))).collect()
}

fn shade(cosine: f64, limit: f64) -> i32 {
    (cosine / limit * f64::from(SHADES)).round().clamp(f64::from(-SHADES), f64::from(SHADES)) as i32
}

/// White at 0, through teal to deep blue above, through amber to brown below.
fn colour(shade: i32) -> String {
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

/// A frame around each cluster's block on the diagonal, and its name in the margin.
fn frames(bands: &[Band], cell: f64, x: f64, names_on_left: bool) -> String {
    let mut svg = String::new();
    let mut start = 0;
    for band in bands {
        let (at, size) = (start as f64 * cell, band.len as f64 * cell);
        let _ = writeln!(
            svg,
            "<rect class=\"frame\" x=\"{at:.1}\" y=\"{at:.1}\" width=\"{size:.1}\" height=\"{size:.1}\"/>"
        );
        if size >= 9.0 {
            let (anchor, name, y) =
                (if names_on_left { "end" } else { "start" }, escape(&shortened(band.name)), at + size / 2.0);
            let _ =
                writeln!(svg, "<text class=\"band\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
        }
        start += band.len;
    }
    svg
}

/// The scale below the map.
fn legend(side: f64, limit: f64) -> String {
    let width = side.min(280.0);
    let step = width / f64::from(2 * SHADES + 1);
    let mut svg = format!("<g transform=\"translate(0 {:.1})\">\n", side + 16.0);
    for (at, shade) in (-SHADES..=SHADES).enumerate() {
        let (x, wide) = (at as f64 * step, step + 0.5);
        let _ = writeln!(svg, "<rect x=\"{x:.2}\" width=\"{wide:.2}\" height=\"10\" fill=\"{}\"/>", colour(shade));
    }
    for (x, anchor, text) in [
        (0.0, "start", format!("−{limit:.2}")),
        (width / 2.0, "middle", "cosine 0".to_owned()),
        (width, "end", format!("{limit:.2}")),
    ] {
        let _ = writeln!(svg, "<text class=\"tick\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"26\">{text}</text>");
    }
    svg.push_str("</g>\n");
    svg
}

/// The margin that the longest name needs.
fn label_width(similarity: &Similarity, order: &[usize]) -> f64 {
    let longest = order.iter().map(|at| shortened(&similarity.names()[*at]).chars().count()).max().unwrap_or(0);
    20.0 + 6.6 * longest as f64
}

/// A name at a length that fits a margin; the member list has it whole.
pub(crate) fn shortened(name: &str) -> String {
    const LONGEST: usize = 32;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONGEST - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn colours_run_from_white_to_the_deepest_shade() {
        assert_eq!(
            (colour(0), colour(SHADES), colour(-SHADES)),
            ("#fafbfc".into(), "#122c62".into(), "#7a3a10".into())
        );
        assert_eq!((shade(0.5, 0.5), shade(1.0, 0.5), shade(-0.25, 0.5)), (SHADES, SHADES, -SHADES / 2));
    }

    #[test]
    fn long_names_are_cut_at_characters() {
        assert_eq!(shortened(&"é".repeat(40)).chars().count(), 32);
    }
}
