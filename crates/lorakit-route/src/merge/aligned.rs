//! Merges in a basis that the experts share: KnOTS and Core Space.
//!
//! Deltas of different experts rarely have their values in the same places. Both methods write each delta in a common
//! orthonormal basis, merge value by value there, and go back; sums are unchanged by it, exactly. Since the basis has
//! no more directions than the experts have ranks, the result is a LoRA of the sum of ranks at most.
//!
//! - KnOTS (Stoica et al. 2025, <https://arxiv.org/abs/2410.19735>): `[D_1 | ... | D_n] = U S [V_1 | ... | V_n]`, the
//!   `S V_i` are merged, and `W = U merge(S V_i)`.
//! - Core Space (Panariello et al. 2025, <https://arxiv.org/abs/2509.17786>): with orthonormal U of the outputs and V of
//!   the inputs, the `M_i = U' D_i V` are merged, and `W = U merge(M_i) V'`.

use super::error::Result;
use super::module::{Made, Module, Part};
use super::rank::Rank;
use super::svd::{Product, widened_a, widened_b};
use super::task_vectors::TaskVectors;
use super::values::Values;
use crate::settings::Settings;
use faer::{Mat, MatRef};
use std::fmt;
use std::str::FromStr;

/// Directions that the stacked deltas stretch by less than this share of their strongest are left out of a basis:
/// they are rounding. (KnOTS cuts at 1e-5 whatever the size of the deltas, which loses small adapters.)
const NEGLIGIBLE: f64 = 1e-6;

/// The merge `knots`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knots {
    /// How aligned deltas are merged.
    pub inner: TaskVectors,
    /// The rank of the result.
    pub rank: Rank,
}

/// The merge `core_space`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreSpace {
    /// How the cores are merged.
    pub inner: TaskVectors,
    /// Of what the common basis is made.
    pub basis: Basis,
    /// The rank of the result.
    pub rank: Rank,
}

/// Of what Core Space makes its basis; the span is the same, its axes are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Basis {
    /// The singular vectors of the deltas side by side, and of the deltas one under another. They depend on nothing
    /// but the deltas.
    #[default]
    Deltas,
    /// Those of the B's and of the A's, as the paper has it: the same adapters, written as `(B R^-1, R A)`, then give
    /// other axes, which shows wherever the inner merge is not a sum.
    Factors,
}

impl Knots {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let inner = TaskVectors::read_inner(settings);
        Self { inner, rank: settings.take("rank", Rank::Full) }
    }

    pub(super) fn merge(&self, module: &Module) -> Result<Made> {
        let basis = output_axes(module)?;
        let aligned = |part: &Part| {
            let b = widened_b(part.update, part.update.scale());
            basis.transpose() * b * widened_a(part.update)
        };
        let a = merged(&self.inner, module, module.parts.iter().map(aligned).collect());
        Product { b: basis, a }.compressed(module, self.rank)
    }
}

impl CoreSpace {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let inner = TaskVectors::read_inner(settings);
        Self { inner, basis: settings.take("basis", Basis::default()), rank: settings.take("rank", Rank::Full) }
    }

    pub(super) fn merge(&self, module: &Module) -> Result<Made> {
        let (left, right) = match self.basis {
            Basis::Deltas => (output_axes(module)?, input_axes(module)?),
            Basis::Factors => {
                (axes(module, stacked_b(module, false).as_ref())?, axes(module, stacked_a(module, false).transpose())?)
            }
        };
        let core = |part: &Part| {
            let b = left.transpose() * widened_b(part.update, part.update.scale());
            b * (widened_a(part.update) * &right)
        };
        let cores = merged(&self.inner, module, module.parts.iter().map(core).collect());
        // The smaller side of the core is the rank.
        let product = if cores.nrows() <= cores.ncols() {
            Product { a: cores * right.transpose(), b: left }
        } else {
            Product { b: left * cores, a: right.transpose().to_owned() }
        };
        product.compressed(module, self.rank)
    }
}

/// The experts' matrices in a common basis, merged value by value.
fn merged(inner: &TaskVectors, module: &Module, aligned: Vec<Mat<f64>>) -> Mat<f64> {
    let (rows, columns) = (aligned[0].nrows(), aligned[0].ncols());
    if rows == 0 || columns == 0 {
        return Mat::zeros(rows, columns);
    }
    let row_major = |matrix: Mat<f64>| {
        let values = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        Values::Double(values.map(|at| matrix[at]).collect(), columns)
    };
    let values = aligned.into_iter().map(row_major).collect();
    let merged = inner.merge_values(module, values, "aligned", |part| part.weight, &Vec::new());
    MatRef::from_row_major_slice(&merged, rows, columns).to_owned()
}

/// The left singular vectors of `[D_1 | ... | D_n]`.
fn output_axes(module: &Module) -> Result<Mat<f64>> {
    let b = stacked_b(module, true).qr();
    let mut core = b.thin_R().to_owned();
    // Each A_i = L_i Q_i with orthonormal rows in Q_i, which leave left singular vectors alone.
    turned(module, &mut core, |part| widened_a(part.update).transpose().qr().thin_R().transpose().to_owned());
    Ok(b.compute_thin_Q() * axes(module, core.as_ref())?)
}

/// The right singular vectors of the D_i one under another.
fn input_axes(module: &Module) -> Result<Mat<f64>> {
    let a = stacked_a(module, true).transpose().qr();
    let mut core = a.thin_R().to_owned();
    turned(module, &mut core, |part| widened_b(part.update, 1.0).qr().thin_R().transpose().to_owned());
    Ok(a.compute_thin_Q() * axes(module, core.as_ref())?)
}

/// Multiplies each expert's columns of `core` by what `by` makes of the expert: `[r, at most r]`.
fn turned(module: &Module, core: &mut Mat<f64>, by: impl Fn(&Part) -> Mat<f64>) {
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

/// The left singular vectors of a matrix that are more than rounding.
fn axes(module: &Module, matrix: MatRef<f64>) -> Result<Mat<f64>> {
    let svd = matrix.thin_svd().map_err(|_| module.refuse("the singular value decomposition did not converge"))?;
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

impl fmt::Display for Knots {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.inner.write_inner(f)?;
        write!(f, ",rank={}", self.rank)
    }
}

impl fmt::Display for CoreSpace {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.inner.write_inner(f)?;
        write!(f, ",basis={},rank={}", self.basis, self.rank)
    }
}

impl FromStr for Basis {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "deltas" => Ok(Self::Deltas),
            "factors" => Ok(Self::Factors),
            _ => Err("deltas or factors"),
        }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Deltas => "deltas",
            Self::Factors => "factors",
        })
    }
}
