//! The truncated SVD of MBC, from the Gram matrix of the experts' vectors.

use faer::{Mat, Side};

use crate::error::{ClusterError, Result};
use crate::gram::gram_matrix::GramMatrix;
use crate::leading_eigenpairs::{Eigenpairs, is_worthwhile, leading_eigenpairs};

/// A row with a smaller squared length, relative to the expert's vector, is rounding and has no direction.
const ROUNDING: f64 = 1e-12;

/// The experts' coordinates in the `components` leading singular directions: the rows of U Σ, at length 1, as
/// `[n, min(components, n)]`.
///
/// Let `X = U Σ V'` be the matrix of the experts' vectors, `[n, millions]`. The paper computes its truncated SVD by random
/// projections (arXiv:2405.11157). Here U and Σ come from the eigenvectors of the Gram matrix `[n, n]`, exactly:
/// `X X' = U Σ² U'`. Beyond a few thousand experts only the leading ones are computed, since all of them take n³
/// operations. A vector of zeros gets a row of zeros.
///
/// # Errors
/// If `components` is 0.
pub(crate) fn spectral_embedding(gram: &GramMatrix, components: usize) -> Result<Vec<Vec<f64>>> {
    if components == 0 {
        return Err(ClusterError::Setting { name: "components", value: "0".to_owned(), expected: "at least 1" });
    }
    let n = gram.names().len();
    let components = components.min(n);
    let unit = (0..n).map(|i| gram.at(i, i)).fold(f64::MIN_POSITIVE, f64::max);
    let leading = if is_worthwhile(n, components) { leading_eigenpairs(gram.matrix(), components) } else { None };
    let Eigenpairs { values, vectors } = match leading {
        Some(Eigenpairs { values, vectors }) => {
            Eigenpairs { values: values.into_iter().map(|value| value / unit).collect(), vectors }
        }
        None => all_eigenpairs(gram, unit, components)?,
    };
    // Rounding can make eigenvalues of a singular matrix negative.
    let sigmas: Vec<f64> = values.into_iter().map(|value| value.max(0.0).sqrt()).collect();
    let row = |i: usize| sigmas.iter().enumerate().map(|(at, sigma)| vectors[(i, at)] * sigma).collect();
    Ok((0..n).map(|i| normalized(row(i), gram.at(i, i) / unit)).collect())
}

/// The leading eigenpairs of the Gram matrix divided by `unit`, from the decomposition of all of it. With a largest diagonal
/// of 1 the solver's tolerances are relative. At most as many as there are experts.
fn all_eigenpairs(gram: &GramMatrix, unit: f64, components: usize) -> Result<Eigenpairs> {
    let n = gram.names().len();
    let matrix = Mat::from_fn(n, n, |i, j| gram.at(i, j) / unit);
    let eigen =
        matrix.self_adjoint_eigen(Side::Lower).map_err(|_| ClusterError::Numerical("the eigendecomposition"))?;
    // Eigenvalues are in ascending order.
    let ascending = eigen.S().column_vector();
    let values = (0..components).map(|at| ascending[n - 1 - at]).collect();
    Ok(Eigenpairs { values, vectors: Mat::from_fn(n, components, |i, j| eigen.U()[(i, n - 1 - j)]) })
}

/// The row at length 1, or zeros if it is rounding relative to `squared`, the squared length before truncation.
fn normalized(row: Vec<f64>, squared: f64) -> Vec<f64> {
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
        assert_eq!(spectral_embedding(&gram, usize::MAX).unwrap(), rows);
        let similarity = Similarity::from_gram(GramMatrix::of_points(gram.names(), &rows).unwrap());
        let exact = Similarity::from_gram(gram);
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
        let similarity = Similarity::from_gram(GramMatrix::of_points(gram.names(), &rows).unwrap());
        assert!(similarity.at(0, 3) > 0.95 && similarity.at(0, 1) < 0.5);
    }

    /// The cosines of rows, which do not depend on the vectors chosen for equal singular values.
    fn cosines(rows: &[Vec<f64>]) -> Vec<f64> {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
        rows.iter().flat_map(|x| rows.iter().map(move |y| dot(x, y))).collect()
    }

    #[test]
    fn leading_pairs_alone_give_the_embedding_of_the_complete_decomposition() {
        const COMPONENTS: usize = 6;
        let names: Vec<String> = (0..500).map(|at| format!("e{at:03}")).collect();
        assert!(is_worthwhile(names.len(), COMPONENTS));
        let noise = crate::synthetic::normal(3, 500 * 12);
        // Points in 12 dimensions of different spread, and in 3, fewer than components; some of them equal, some zero.
        for dimensions in [12, 3] {
            let value = |at: usize, d: usize| match (d < dimensions, at % 50) {
                (false, _) | (_, 7) => 0.0,
                (true, 9) => 1.5f64.powi(-(d as i32)),
                (true, _) => f64::from(noise[at * 12 + d]) * 1.5f64.powi(-(d as i32)),
            };
            let points: Vec<Vec<f64>> = (0..500).map(|at| (0..12).map(|d| value(at, d)).collect()).collect();
            let gram = GramMatrix::of_points(&names, &points).unwrap();
            assert!(leading_eigenpairs(gram.matrix(), COMPONENTS).is_some());
            let found = spectral_embedding(&gram, COMPONENTS).unwrap();
            let unit = (0..500).map(|i| gram.at(i, i)).fold(0.0, f64::max);
            let Eigenpairs { values, vectors } = all_eigenpairs(&gram, unit, COMPONENTS).unwrap();
            let row = |i: usize| (0..COMPONENTS).map(|at| vectors[(i, at)] * values[at].max(0.0).sqrt()).collect();
            let all: Vec<Vec<f64>> = (0..500).map(|i| normalized(row(i), gram.at(i, i) / unit)).collect();
            for (found, expected) in cosines(&found).into_iter().zip(cosines(&all)) {
                assert!((found - expected).abs() < 1e-9, "{dimensions} dimensions: {found} {expected}");
            }
            assert!(found[7].iter().all(|value| *value == 0.0));
        }
    }

    #[test]
    fn a_zero_expert_gets_a_row_of_zeros() {
        let mut adapters = Synthetic::default().adapters();
        adapters[4].1 = zeroed(&adapters[4].1);
        let gram = GramMatrix::of(&ExpertSet::in_memory(adapters).unwrap(), ComparisonSpace::Delta, 0.0).unwrap();
        assert!(spectral_embedding(&gram, 5).unwrap()[4].iter().all(|value| *value == 0.0));
    }
}
