//! The SVD embedding of MBC, from the Gram matrix of the experts' vectors.

use faer::{Mat, Side};

use crate::{Error, Gram, Result};

/// A row this small against the expert's own length is rounding, and has no direction.
const ROUNDING: f64 = 1e-12;

/// The experts' unit coordinates in the `components` leading singular directions: the rows of U Σ, normalised.
///
/// With `X = U Σ V'` the matrix of the experts' vectors, `X X' = U Σ² U'`. The truncated SVD that the paper takes of
/// X, `[n, millions]`, by random projections, is exactly the eigenproblem of its Gram matrix `[n, n]`. Components
/// beyond n do not exist. An expert without direction keeps a row of zeros.
///
/// # Errors
/// If `components` is 0.
pub fn embed(gram: &Gram, components: usize) -> Result<Vec<Vec<f64>>> {
    if components == 0 {
        return Err(Error::Setting { name: "components", value: "0".to_owned(), expected: "at least 1" });
    }
    let n = gram.names().len();
    // Scaled to a largest diagonal of 1, so that the solver's tolerances mean the same for any adapter.
    let unit = (0..n).map(|i| gram.at(i, i)).fold(f64::MIN_POSITIVE, f64::max);
    let matrix = Mat::from_fn(n, n, |i, j| gram.at(i, j) / unit);
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| Error::Numerical("the eigendecomposition"))?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    // Eigenvalues come in nondecreasing order; rounding may leave those of a singular matrix below zero.
    let leading: Vec<(usize, f64)> = (0..n).rev().take(components).map(|at| (at, values[at].max(0.0).sqrt())).collect();
    let row = |i: usize| leading.iter().map(|&(at, sigma)| vectors[(i, at)] * sigma).collect();
    Ok((0..n).map(|i| normalised(row(i), gram.at(i, i) / unit)).collect())
}

/// The row at length 1; zeros where it is rounding against `squared`, the squared length before truncation.
fn normalised(row: Vec<f64>, squared: f64) -> Vec<f64> {
    let found: f64 = row.iter().map(|value| value * value).sum();
    if found <= ROUNDING * squared || squared <= 0.0 {
        return vec![0.0; row.len()];
    }
    let length = found.sqrt();
    row.into_iter().map(|value| value / length).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::Experts;
    use crate::Space;
    use crate::planted::{Planted, zeroed};

    #[test]
    fn with_all_components_the_embedding_keeps_every_cosine() {
        let gram = Gram::of(&Planted::default().experts(), Space::Delta, 0.0).unwrap();
        let rows = embed(&gram, 64).unwrap();
        let similarity = Gram::of_points(gram.names(), &rows).unwrap().similarity();
        let exact = gram.similarity();
        for i in 0..12 {
            for j in 0..12 {
                assert!((similarity.at(i, j) - exact.at(i, j)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn few_components_keep_the_families_and_drop_what_is_the_experts_own() {
        let gram = Gram::of(&Planted::default().experts(), Space::Delta, 0.0).unwrap();
        let rows = embed(&gram, 3).unwrap();
        assert!(rows.iter().all(|row| row.len() == 3));
        let similarity = Gram::of_points(gram.names(), &rows).unwrap().similarity();
        assert!(similarity.at(0, 3) > 0.95 && similarity.at(0, 1) < 0.5);
    }

    #[test]
    fn an_expert_without_direction_stays_at_the_origin() {
        let mut adapters = Planted::default().adapters();
        adapters[4].1 = zeroed(&adapters[4].1);
        let gram = Gram::of(&Experts::in_memory(adapters).unwrap(), Space::Delta, 0.0).unwrap();
        assert!(embed(&gram, 5).unwrap()[4].iter().all(|value| *value == 0.0));
    }
}
