//! Singular value decompositions of deltas in factored form, and polar factors, both without null directions.
//!
//! Merges that make singular directions of several experts orthogonal (TSV-M, Iso-CTS) depend on each direction that they
//! are given, however small its singular value. What a decomposition routine returns for a singular value of zero is
//! arbitrary, and so would be the merge: such directions are left out.

use crate::error::Result;
use crate::merge::low_rank_product::{LowRankProduct, NO_SVD, widened_a, widened_b};
use crate::merge::module::Module;
use crate::merge::shared_basis::NEGLIGIBLE;
use faer::{Mat, MatRef};

/// `U diag(values) V'` with orthonormal columns in `U: [out, k]` and `V: [in, k]`; values decrease, and none is zero.
pub(super) struct SingularTriples {
    pub left: Mat<f64>,
    pub values: Vec<f64>,
    pub right: Mat<f64>,
}

impl SingularTriples {
    /// The decomposition of a product. Singular values that are negligible beside its largest, or beside `scale`, count as
    /// zero.
    pub(super) fn of(module: &Module, product: &LowRankProduct, scale: f64) -> Result<Self> {
        let (b, a) = (product.b.qr(), product.a.transpose().qr());
        let core = b.thin_R() * a.thin_R().transpose();
        let svd = core.thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
        let mut values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let least = NEGLIGIBLE * values.iter().fold(scale, |largest, value| largest.max(*value));
        values.retain(|value| *value > least);
        let left = b.compute_thin_Q() * svd.U().subcols(0, values.len());
        let right = a.compute_thin_Q() * svd.V().subcols(0, values.len());
        Ok(Self { left, values, right })
    }

    /// The weighted deltas of the experts, each with its decomposition; those that are zero are left out.
    pub(super) fn of_experts(module: &Module) -> Result<Vec<(LowRankProduct, Self)>> {
        let mut found = Vec::new();
        for part in &module.parts {
            let b = widened_b(part.update, part.weight * part.update.scale());
            let delta = LowRankProduct { b, a: widened_a(part.update) };
            let triples = Self::of(module, &delta, 0.0)?;
            if !triples.values.is_empty() {
                found.push((delta, triples));
            }
        }
        Ok(found)
    }
}

/// The first `kept` columns of each matrix, side by side.
pub(super) fn side_by_side<'a>(rows: usize, parts: impl Iterator<Item = (MatRef<'a, f64>, usize)> + Clone) -> Mat<f64> {
    let columns = parts.clone().map(|(matrix, kept)| kept.min(matrix.ncols())).sum();
    let mut all = Mat::zeros(rows, columns);
    let mut at = 0;
    for (matrix, kept) in parts {
        let kept = kept.min(matrix.ncols());
        all.subcols_mut(at, kept).copy_from(matrix.subcols(0, kept));
        at += kept;
    }
    all
}

/// The factor `P Q'` of a matrix `P S Q'`: the nearest one whose singular values are all 1 or, for null directions, 0; and
/// the rank.
pub(super) fn polar_factor(module: &Module, matrix: &Mat<f64>) -> Result<(Mat<f64>, usize)> {
    if matrix.ncols() == 0 {
        return Ok((matrix.clone(), 0));
    }
    let qr = matrix.qr();
    let svd = qr.thin_R().thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
    let values = svd.S().column_vector();
    let largest = values.iter().fold(0f64, |largest, value| largest.max(*value));
    let rank = values.iter().filter(|value| **value > NEGLIGIBLE * largest).count();
    let inner = svd.U().subcols(0, rank) * svd.V().subcols(0, rank).transpose();
    Ok((qr.compute_thin_Q() * inner, rank))
}

/// The dimension of the outputs and of the inputs that the experts' directions span.
pub(super) fn spans<'a>(
    module: &Module,
    experts: impl Iterator<Item = &'a SingularTriples> + Clone,
) -> Result<[usize; 2]> {
    let left = side_by_side(module.output, experts.clone().map(|of| (of.left.as_ref(), usize::MAX)));
    let right = side_by_side(module.input, experts.map(|of| (of.right.as_ref(), usize::MAX)));
    Ok([polar_factor(module, &left)?.1, polar_factor(module, &right)?.1])
}
