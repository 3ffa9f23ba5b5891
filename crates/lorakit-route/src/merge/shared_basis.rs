//! A basis shared by the experts, for merges that work value by value in it: KnOTS, Core Space and CtM.
//!
//! Values of different experts' deltas rarely align. These methods express each delta in a common orthonormal basis,
//! merge value by value there, and transform back; this leaves sums exactly unchanged. Since the dimension of the basis
//! is at most the sum of the experts' ranks, so is the rank of the result.

use crate::error::Result;
use crate::merge::low_rank_product::{NO_SVD, widened_a, widened_b};
use crate::merge::module::{Module, ModuleExpert};
use crate::merge::row_source::{ExpertMatrices, RowSource};
use crate::merge::task_vectors::TaskVectors;
use faer::{Mat, MatRef};
use serde::{Deserialize, Serialize};

/// Directions whose singular value is below this share of the largest are rounding noise and left out of a basis.
/// (KnOTS uses an absolute threshold of 1e-5, which loses small adapters.)
pub(super) const NEGLIGIBLE: f64 = 1e-6;

/// What Core Space computes its basis from, where the span is the same in both cases but the axes differ, and Pico its
/// shared directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The singular vectors of the horizontally and vertically concatenated deltas. They depend only on the
    /// deltas.
    #[default]
    Deltas,
    /// The singular vectors of the concatenated B's and A's, as in the papers. Refactoring an adapter as `(B R^-1, R A)`
    /// then changes the axes, which matters to Core Space unless the inner merge is a sum.
    Factors,
}

/// The experts' matrices in a common basis, all of one shape, merged value by value to one of that shape.
pub(super) fn merged_in_basis(inner: &TaskVectors, module: &Module, aligned: Vec<Mat<f64>>) -> Mat<f64> {
    let (rows, columns) = (aligned[0].nrows(), aligned[0].ncols());
    if rows == 0 || columns == 0 {
        return Mat::zeros(rows, columns);
    }
    let row_major = |matrix: Mat<f64>| {
        let values = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        RowSource::Double(values.map(|at| matrix[at]).collect(), columns)
    };
    let matrices = ExpertMatrices { name: "aligned", sources: aligned.into_iter().map(row_major).collect() };
    let merged = inner.merge_values(module, matrices, |part| part.weight, &[]);
    MatRef::from_row_major_slice(&merged, rows, columns).to_owned()
}

/// Orthonormal directions with their singular values, which decrease.
pub(super) struct LeftSingularVectors {
    /// `[n, k]`.
    pub vectors: Mat<f64>,
    pub values: Vec<f64>,
}

/// The left singular vectors and the singular values of `[D_1 | ... | D_n]`, `[out, k]` with a k of at most the
/// sum of ranks.
pub(super) fn output_directions(module: &Module) -> Result<LeftSingularVectors> {
    let b = stacked_b(module, true).qr();
    let mut core = b.thin_R().to_owned();
    // Each A_i = L_i Q_i with orthonormal rows in Q_i, which do not affect left singular vectors: [D_1 | ...] becomes
    // B [L_1, ...] on the diagonal, and with B = Q R the core is R [L_1, ...], [at most sum of ranks, sum of ranks].
    multiply_columns(module, &mut core, |part| widened_a(part.update).transpose().qr().thin_R().transpose().to_owned());
    let LeftSingularVectors { vectors, values } = left_directions(module, core.as_ref())?;
    Ok(LeftSingularVectors { vectors: b.compute_thin_Q() * vectors, values })
}

/// The left singular vectors and the singular values of `[B_1 | ... | B_n]`, without scales.
pub(super) fn factor_directions(module: &Module) -> Result<LeftSingularVectors> {
    left_directions(module, stacked_b(module, false).as_ref())
}

/// The left singular vectors of `[D_1 | ... | D_n]`.
pub(super) fn output_axes(module: &Module) -> Result<Mat<f64>> {
    Ok(output_directions(module)?.vectors)
}

/// The right singular vectors of the vertically concatenated D_i, `[in, k]` with a k of at most the sum of ranks.
pub(super) fn input_axes(module: &Module) -> Result<Mat<f64>> {
    let a = stacked_a(module, true).transpose().qr();
    let mut core = a.thin_R().to_owned();
    multiply_columns(module, &mut core, |part| widened_b(part.update, 1.0).qr().thin_R().transpose().to_owned());
    Ok(a.compute_thin_Q() * axes(module, core.as_ref())?)
}

/// Multiplies each expert's columns of `core`, `[k, sum of ranks]`, by that expert's matrix, `[r, at most r]`; columns that it
/// lacks become zero.
fn multiply_columns(module: &Module, core: &mut Mat<f64>, by: impl Fn(&ModuleExpert) -> Mat<f64>) {
    let mut at = 0;
    for part in &module.parts {
        let rank = part.update.rank();
        let by = by(part);
        let product = core.subcols(at, rank) * &by;
        core.subcols_mut(at, rank).fill(0.0);
        core.subcols_mut(at, by.ncols()).copy_from(product);
        at += rank;
    }
}

/// The left singular vectors of the horizontally concatenated B's, `[out, k]`, and the right ones of the vertically
/// concatenated A's, `[in, l]`, with k and l of at most the sum of ranks.
pub(super) fn factor_axes(module: &Module) -> Result<(Mat<f64>, Mat<f64>)> {
    Ok((axes(module, stacked_b(module, false).as_ref())?, axes(module, stacked_a(module, false).transpose())?))
}

/// The left singular vectors of a matrix `[n, m]`, without rounding noise: `[n, at most min(n, m)]`.
fn axes(module: &Module, matrix: MatRef<f64>) -> Result<Mat<f64>> {
    Ok(left_directions(module, matrix)?.vectors)
}

/// The left singular vectors of a matrix and the singular values, without rounding noise.
fn left_directions(module: &Module, matrix: MatRef<f64>) -> Result<LeftSingularVectors> {
    let svd = matrix.thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
    let singular = svd.S().column_vector();
    let largest = singular.iter().fold(0f64, |largest, value| largest.max(*value));
    let count = singular.iter().filter(|value| **value > NEGLIGIBLE * largest).count();
    let values = singular.iter().take(count).copied().collect();
    Ok(LeftSingularVectors { vectors: svd.U().subcols(0, count).to_owned(), values })
}

/// The horizontally concatenated B's, `[out, sum of ranks]`, scaled or unscaled.
fn stacked_b(module: &Module, scaled: bool) -> Mat<f64> {
    let mut stacked = Mat::zeros(module.output, module.rank_sum());
    let mut at = 0;
    for part in &module.parts {
        let rank = part.update.rank();
        stacked.subcols_mut(at, rank).copy_from(widened_b(part.update, if scaled { part.update.scale() } else { 1.0 }));
        at += rank;
    }
    stacked
}

/// The vertically concatenated A's, `[sum of ranks, in]`, scaled or unscaled.
fn stacked_a(module: &Module, scaled: bool) -> Mat<f64> {
    let mut stacked = Mat::zeros(module.rank_sum(), module.input);
    let mut at = 0;
    for part in &module.parts {
        let (rank, scale) = (part.update.rank(), if scaled { part.update.scale() } else { 1.0 });
        stacked.subrows_mut(at, rank).copy_from(widened_a(part.update) * faer::Scale(scale));
        at += rank;
    }
    stacked
}
