//! The truncated SVD of MBC, from the Gram matrix of the experts' vectors.

use faer::{Mat, Side};

use crate::error::{Error, Result};
use crate::gram::gram_matrix::GramMatrix;

/// A row with a smaller squared length, relative to the expert's vector, is rounding and has no direction.
const ROUNDING: f64 = 1e-12;

/// The experts' coordinates in the `components` leading singular directions: the rows of U Σ, at length 1, as
/// `[n, min(components, n)]`.
///
/// Let `X = U Σ V'` be the matrix of the experts' vectors, `[n, millions]`. The paper computes its truncated SVD by random
/// projections (arXiv:2405.11157). Here U and Σ come from the eigenvectors of the Gram matrix `[n, n]`, exactly:
/// `X X' = U Σ² U'`. A vector of zeros gets a row of zeros.
///
/// # Errors
/// If `components` is 0.
pub fn spectral_embedding(gram: &GramMatrix, components: usize) -> Result<Vec<Vec<f64>>> {
    if components == 0 {
        return Err(Error::Setting { name: "components", value: "0".to_owned(), expected: "at least 1" });
    }
    let n = gram.names().len();
    // Scaled to a largest diagonal of 1, so that the solver's tolerances are relative.
    let unit = (0..n).map(|i| gram.at(i, i)).fold(f64::MIN_POSITIVE, f64::max);
    let matrix = Mat::from_fn(n, n, |i, j| gram.at(i, j) / unit);
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| Error::Numerical("the eigendecomposition"))?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    // Eigenvalues are in ascending order; rounding can make those of a singular matrix negative.
    let leading: Vec<(usize, f64)> = (0..n).rev().take(components).map(|at| (at, values[at].max(0.0).sqrt())).collect();
    let row = |i: usize| leading.iter().map(|&(at, sigma)| vectors[(i, at)] * sigma).collect();
    Ok((0..n).map(|i| normalised(row(i), gram.at(i, i) / unit)).collect())
}

/// The row at length 1, or zeros if it is rounding relative to `squared`, the squared length before truncation.
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
    use crate::comparison_space::ComparisonSpace;
    use crate::expert_set::ExpertSet;
    use crate::similarity::Similarity;
    use crate::synthetic::{Synthetic, zeroed};

    #[test]
    fn with_all_components_the_embedding_keeps_every_cosine() {
        let gram = GramMatrix::of(&Synthetic::default().experts(), ComparisonSpace::Delta, 0.0).unwrap();
        let rows = spectral_embedding(&gram, 64).unwrap();
        let similarity = Similarity::from_gram(&GramMatrix::of_points(gram.names(), &rows).unwrap());
        let exact = Similarity::from_gram(&gram);
        for i in 0..12 {
            for j in 0..12 {
                assert!((similarity.at(i, j) - exact.at(i, j)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn few_components_keep_the_families() {
        let gram = GramMatrix::of(&Synthetic::default().experts(), ComparisonSpace::Delta, 0.0).unwrap();
        let rows = spectral_embedding(&gram, 3).unwrap();
        assert!(rows.iter().all(|row| row.len() == 3));
        let similarity = Similarity::from_gram(&GramMatrix::of_points(gram.names(), &rows).unwrap());
        assert!(similarity.at(0, 3) > 0.95 && similarity.at(0, 1) < 0.5);
    }

    #[test]
    fn a_zero_expert_gets_a_row_of_zeros() {
        let mut adapters = Synthetic::default().adapters();
        adapters[4].1 = zeroed(&adapters[4].1);
        let gram = GramMatrix::of(&ExpertSet::in_memory(adapters).unwrap(), ComparisonSpace::Delta, 0.0).unwrap();
        assert!(spectral_embedding(&gram, 5).unwrap()[4].iter().all(|value| *value == 0.0));
    }
}
