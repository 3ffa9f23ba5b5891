//! A linear axis: where a value stands, and the round values that are labeled.

use serde::Serialize;

/// From the values of a plot to pixels.
pub struct Axis {
    values: [f64; 2],
    pixels: [f64; 2],
    step: f64,
}

/// A labeled position.
#[derive(Serialize)]
pub struct AxisTick {
    /// In pixels.
    pub at: f64,
    /// The value as text.
    pub label: String,
}

/// About how many steps an axis has.
const STEPS: f64 = 4.0;

impl Axis {
    /// Spans the finite ones of `values`, widened to round numbers; from 0 to 1 if there is none. `pixels` are the
    /// positions of the axis' ends.
    pub fn of(values: impl IntoIterator<Item = f64>, pixels: [f64; 2]) -> Self {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match high - low {
            spread if spread > 0.0 => (low, high),
            0.0 => (low - 0.5 * low.abs().max(1e-3), high + 0.5 * high.abs().max(1e-3)),
            _ => (0.0, 1.0),
        };
        let step = round_step((high - low) / STEPS);
        Self { values: [(low / step).floor() * step, (high / step).ceil() * step], pixels, step }
    }

    /// The position of a value in pixels; none if it is not finite.
    pub fn at(&self, value: f64) -> Option<f64> {
        let [low, high] = self.values;
        let [from, to] = self.pixels;
        value.is_finite().then(|| from + (value - low) / (high - low) * (to - from))
    }

    /// The round values on the axis.
    pub fn ticks(&self) -> Vec<AxisTick> {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        let [low, high] = self.values;
        let count = ((high - low) / self.step).round() as usize;
        let tick = |at: usize| {
            // Adding 0 turns a negative zero into a positive one.
            let value = low + self.step * at as f64;
            let value = if value.abs() < self.step / 2.0 { 0.0 } else { value };
            Some(AxisTick { at: self.at(value)?, label: format!("{value:.digits$}") })
        };
        (0..=count).filter_map(tick).collect()
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is no less than `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    power * factors.into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9)).unwrap_or(10.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn labels(values: &[f64]) -> Vec<String> {
        Axis::of(values.iter().copied(), [0.0, 100.0]).ticks().into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(labels(&[1.3, 5.74]), ["0", "2", "4", "6"]);
        assert_eq!(labels(&[-0.31, 0.12]), ["-0.4", "-0.2", "0.0", "0.2"]);
        assert_eq!(labels(&[3.0, 97.0]), ["0", "50", "100"]);
    }

    #[test]
    fn a_value_stands_in_proportion_and_one_that_is_not_finite_nowhere() {
        let axis = Axis::of([0.0, 4.0, f64::NAN, f64::INFINITY], [100.0, 300.0]);
        assert_eq!((axis.at(1.0), axis.at(4.0), axis.at(f64::NAN)), (Some(150.0), Some(300.0), None));
    }

    #[test]
    fn no_value_and_one_value_have_an_axis_too() {
        assert_eq!(labels(&[]), labels(&[0.0, 1.0]));
        assert_eq!(labels(&[f64::NAN]), labels(&[]));
        for value in [0.0, 2.5, -7.0, 1e-9, 1e9] {
            let axis = Axis::of([value], [0.0, 1.0]);
            assert!((0.0..=1.0).contains(&axis.at(value).unwrap()), "{value}");
            assert!(axis.ticks().len() < 20, "{value}");
        }
    }
}
