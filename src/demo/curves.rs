//! Training curves as SVG.

use std::fmt::Write;

/// One curve: its name and the values of its steps.
pub struct Curve {
    /// As the legend has it.
    pub name: String,
    /// One value per step.
    pub values: Vec<f64>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 28.0;
const LEGEND: f64 = 110.0;

/// Colours that stay apart, also for those who do not see all of them.
const COLOURS: [&str; 10] =
    ["#2e86ab", "#de8c3c", "#3f8f5f", "#b0413e", "#7a5ea8", "#8c6d46", "#c46a9e", "#5d6b7a", "#a3a13b", "#35a7a0"];

/// The mean of several curves, step by step, as long as the longest.
pub fn mean(curves: &[Vec<f64>]) -> Vec<f64> {
    let steps = curves.iter().map(Vec::len).max().unwrap_or(0);
    let at = |step| {
        let values: Vec<f64> = curves.iter().filter_map(|curve| curve.get(step).copied()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    (0..steps).map(at).collect()
}

/// All curves in one plot, from zero.
pub fn plot(curves: &[Curve]) -> String {
    let steps = curves.iter().map(|c| c.values.len()).max().unwrap_or(0).max(2);
    let top = curves.iter().flat_map(|c| &c.values).copied().fold(0.1, f64::max);
    let x = |step: usize| LEFT + (WIDTH - LEFT - LEGEND) * step as f64 / (steps - 1) as f64;
    let y = |value: f64| 8.0 + (HEIGHT - BOTTOM - 8.0) * (1.0 - value / top);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"Training loss by step\">\n"
    );
    for tick in 0..=4 {
        let value = top * f64::from(tick) / 4.0;
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{y:.1}\">{value:.1}</text>",
            WIDTH - LEGEND,
            LEFT - 8.0,
            y = y(value)
        );
    }
    for (step, anchor) in [(0, "start"), (steps - 1, "end")] {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">step {}</text>",
            x(step),
            HEIGHT - 10.0,
            step + 1
        );
    }
    for (i, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points: Vec<String> =
            curve.values.iter().enumerate().map(|(step, value)| format!("{:.1},{:.1}", x(step), y(*value))).collect();
        let (line, text) = (16.0 + 18.0 * i as f64, WIDTH - LEGEND + 12.0);
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/>\
             <rect x=\"{text}\" y=\"{:.1}\" width=\"10\" height=\"10\" rx=\"2\" fill=\"{colour}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{line:.1}\">{}</text>",
            points.join(" "),
            line - 5.0,
            text + 16.0,
            super::page::escape(&curve.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_curves_goes_on_where_only_the_longest_does() {
        assert_eq!(mean(&[vec![1.0, 3.0], vec![3.0, 5.0, 7.0]]), [2.0, 4.0, 7.0]);
    }
}
