//! The losses of rows that were left out of a fit; those of the fitted rows only say how well the weights fit.

/// Losses of rows that were left out while the weights were fitted to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutLosses {
    /// Their mean with no expert.
    pub base: f64,
    /// Their mean with the weights fitted to the others.
    pub fitted: f64,
    /// The standard error of the difference; `None` for a single row.
    pub stderr: Option<f64>,
}

impl HeldOutLosses {
    /// From the losses of the same rows without experts and with them.
    pub fn of(base: &[f64], fitted: &[f64]) -> Self {
        let n = base.len() as f64;
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n;
        let differences: Vec<f64> = base.iter().zip(fitted).map(|(base, fitted)| fitted - base).collect();
        let center = mean(&mut differences.iter().copied());
        let squares = differences.iter().map(|d| (d - center) * (d - center)).sum::<f64>();
        Self {
            base: mean(&mut base.iter().copied()),
            fitted: mean(&mut fitted.iter().copied()),
            stderr: (differences.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_row_has_no_standard_error() {
        let two = HeldOutLosses::of(&[2.0, 3.0], &[1.0, 1.0]);
        assert_eq!(two, HeldOutLosses { base: 2.5, fitted: 1.0, stderr: Some(0.5) });
        assert_eq!(HeldOutLosses::of(&[2.0], &[1.0]), HeldOutLosses { base: 2.0, fitted: 1.0, stderr: None });
    }
}
