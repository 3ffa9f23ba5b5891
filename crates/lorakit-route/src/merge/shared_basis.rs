//! A basis that the experts share, for merges that merge value by value there: KnOTS and Core Space.
//!
//! Deltas of different experts rarely have their values in the same places. Both methods write each delta in a common
//! orthonormal basis, merge value by value there, and transform back; sums are unchanged by it, exactly. Since the basis
//! has no more directions than the experts have ranks, the result is a LoRA of the sum of ranks at most.

use crate::error::Result;
use crate::merge::low_rank_product::{NO_SVD, widened_a, widened_b};
use crate::merge::module::{Module, ModuleExpert};
use crate::merge::row_source::RowSource;
use crate::merge::task_vectors::TaskVectors;
use faer::{Mat, MatRef};
use serde::{Deserialize, Serialize};

/// Directions whose singular value is below this share of the largest are left out of a basis: they are rounding. (KnOTS
/// cuts at 1e-5 whatever the size of the deltas, which loses small adapters.)
const NEGLIGIBLE: f64 = 1e-6;

/// What Core Space makes its basis of; the span is the same, its axes are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The singular vectors of the deltas side by side, and of the deltas one under another. They depend on nothing
    /// but the deltas.
    #[default]
    Deltas,
    /// Those of the B's and of the A's, as in the paper: the same adapters, written as `(B R^-1, R A)`, then give other
    /// axes, which matters if the inner merge is not a sum.
    Factors,
}

/// The experts' matrices in a common basis, merged value by value.
pub(super) fn merged_in_basis(inner: &TaskVectors, module: &Module, aligned: Vec<Mat<f64>>) -> Mat<f64> {
    let (rows, columns) = (aligned[0].nrows(), aligned[0].ncols());
    if rows == 0 || columns == 0 {
        return Mat::zeros(rows, columns);
    }
    let row_major = |matrix: Mat<f64>| {
        let values = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        RowSource::Double(values.map(|at| matrix[at]).collect(), columns)
    };
    let values = aligned.into_iter().map(row_major).collect();
    let merged = inner.merge_values(module, values, "aligned", |part| part.weight, &[]);
    MatRef::from_row_major_slice(&merged, rows, columns).to_owned()
}

/// The left singular vectors of `[D_1 | ... | D_n]`.
pub(super) fn output_axes(module: &Module) -> Result<Mat<f64>> {
    let b = stacked_b(module, true).qr();
    let mut core = b.thin_R().to_owned();
    // Each A_i = L_i Q_i with orthonormal rows in Q_i, which leave left singular vectors alone.
    multiply_columns(module, &mut core, |part| widened_a(part.update).transpose().qr().thin_R().transpose().to_owned());
    Ok(b.compute_thin_Q() * axes(module, core.as_ref())?)
}

/// The right singular vectors of the D_i one under another.
pub(super) fn input_axes(module: &Module) -> Result<Mat<f64>> {
    let a = stacked_a(module, true).transpose().qr();
    let mut core = a.thin_R().to_owned();
    multiply_columns(module, &mut core, |part| widened_b(part.update, 1.0).qr().thin_R().transpose().to_owned());
    Ok(a.compute_thin_Q() * axes(module, core.as_ref())?)
}

/// Multiplies each expert's columns of `core` by a matrix of that expert, `[r, at most r]`.
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

/// The left singular vectors of the B's side by side, and the right ones of the A's one under another.
pub(super) fn factor_axes(module: &Module) -> Result<(Mat<f64>, Mat<f64>)> {
    Ok((axes(module, stacked_b(module, false).as_ref())?, axes(module, stacked_a(module, false).transpose())?))
}

/// The left singular vectors of a matrix that are more than rounding.
fn axes(module: &Module, matrix: MatRef<f64>) -> Result<Mat<f64>> {
    let svd = matrix.thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
    let singular = svd.S().column_vector();
    let largest = singular.iter().fold(0f64, |largest, value| largest.max(*value));
    let count = singular.iter().filter(|value| **value > NEGLIGIBLE * largest).count();
    Ok(svd.U().subcols(0, count).to_owned())
}

/// The B's side by side, `[out, sum of ranks]`; with the scales in them or without.
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

/// The A's one under another, `[sum of ranks, in]`; with the scales in them or without.
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
