//! How far experts change the weights of the base.

use super::setup::Setup;
use anyhow::{Context as _, Result};
use lorakit_adapter::{Adapter, BaseModule};
use lorakit_fit::OpenLibrary;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The Frobenius norm of an expert's change `s B A` relative to that of the weights `W` that it changes, over all its
/// modules together: of several experts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RelativeNorms {
    /// The mean over experts.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl RelativeNorms {
    /// Of the experts of a library.
    ///
    /// # Errors
    /// If there is no expert, or one has a module that the base lacks.
    pub fn of(setup: &Setup, opened: &OpenLibrary) -> Result<Self> {
        let weights = squared_norms(setup)?;
        let norm = |name: &String| relative_norm(&opened.library.adapter(name)?, &weights);
        let norms: Vec<f64> = opened.experts.names().iter().map(norm).collect::<Result<_>>()?;
        Self::over(&norms).context("a library without experts")
    }

    fn over(norms: &[f64]) -> Option<Self> {
        let min = norms.iter().copied().reduce(f64::min)?;
        let max = norms.iter().copied().reduce(f64::max)?;
        Some(Self { mean: norms.iter().sum::<f64>() / norms.len() as f64, min, max })
    }
}

impl fmt::Display for RelativeNorms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, min, max] = [self.mean, self.min, self.max].map(|norm| 100.0 * norm);
        write!(f, "{mean:.1} % ({min:.1} to {max:.1} %)")
    }
}

/// The squared Frobenius norm of every weight in the base's layers, by module.
fn squared_norms(setup: &Setup) -> Result<BTreeMap<String, f64>> {
    let checkpoint = setup.resolved.checkpoint()?;
    let norm = |module: BaseModule| {
        let weight = checkpoint.get(&format!("{}.weight", module.path), &[module.output, module.input])?;
        let squares: f64 = weight.values().iter().map(|value| f64::from(*value).powi(2)).sum();
        Ok((module.path, squares))
    };
    setup.base.modules().into_iter().map(norm).collect()
}

fn relative_norm(expert: &Adapter, weights: &BTreeMap<String, f64>) -> Result<f64> {
    let weight = |path: &String| weights.get(path).with_context(|| format!("the base has no module `{path}`"));
    let changed = expert.modules().keys().map(weight).sum::<Result<f64>>()?;
    Ok(expert.norm() / changed.sqrt())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_adapter::{LowRank, Matrix};

    #[test]
    fn only_the_weights_of_the_expert_s_modules_count() {
        let matrix = |values: &[f32]| Matrix::new(1, values.len(), values.to_vec()).unwrap();
        // s B A = 2 * [3] * [1, 0] has the norm 6.
        let update = LowRank::new(matrix(&[1.0, 0.0]), matrix(&[3.0]), 2.0).unwrap();
        let expert = Adapter::new([("a".to_owned(), update)].into());
        let weights = BTreeMap::from([("a".to_owned(), 14400.0), ("b".to_owned(), 1.0)]);
        assert!((relative_norm(&expert, &weights).unwrap() - 0.05).abs() < 1e-12);
        assert!(relative_norm(&expert, &BTreeMap::new()).is_err());
        let norms = RelativeNorms::over(&[0.02, 0.04]).unwrap();
        assert_eq!(norms.to_string(), "3.0 % (2.0 to 4.0 %)");
        assert_eq!(RelativeNorms::over(&[]), None);
    }
}
