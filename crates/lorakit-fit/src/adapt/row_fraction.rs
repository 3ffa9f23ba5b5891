//! A fraction of a task's rows.

use std::str::FromStr;

/// A fraction above 0, and 1 at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fraction(f64);

impl FromStr for Fraction {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fraction = text.parse().ok().filter(|fraction| *fraction > 0.0 && *fraction <= 1.0);
        fraction.map(Self).ok_or("expected a number above 0, and 1 at most")
    }
}

impl Fraction {
    /// The fraction of `count` rows, rounded up: at least one, where there are any.
    pub fn of(self, count: usize) -> usize {
        // Less a little, since 0.07 * 100 is 7.000000000000001.
        let rows = (self.0 * count as f64 - 1e-9).ceil() as usize;
        rows.max(usize::from(count > 0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_fraction_rounds_up() {
        let of = |text: &str, count| text.parse::<Fraction>().unwrap().of(count);
        assert_eq!(
            [of("0.07", 100), of("0.071", 100), of("0.001", 100), of("1", 100), of("0.5", 0), of("1e-12", 100)],
            [7, 8, 1, 100, 0, 1]
        );
        assert!(["0", "1.1", "-1", "x"].into_iter().all(|text| text.parse::<Fraction>().is_err()));
    }
}
