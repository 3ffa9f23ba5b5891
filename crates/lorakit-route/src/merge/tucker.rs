//! Output and input directions in which several matrices keep most of their squared norm: a Tucker decomposition with two
//! modes, by higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle 2000,
//! <https://doi.org/10.1137/S0895479898346995>).
//!
//! Orthonormal P and Q maximize `sum_i |P' X_i Q|_F^2`. For a fixed Q the best P are the first left singular vectors of
//! `[X_1 Q | ... | X_n Q]`, and the other way round; both start from the X_i themselves.

use crate::error::Result;
use crate::merge::low_rank_product::NO_SVD;
use crate::merge::module::Module;
use crate::merge::singular_triples::side_by_side;
use faer::{Mat, MatRef};
use serde::{Deserialize, Serialize};

/// After this many rounds the iteration stops without a message, whatever its state, as in CtM's code: where optima are so
/// close that it is not done, the directions keep nearly the same.
const MAX_ROUNDS: usize = 1000;

/// When the iteration stops; the setting `stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuckerStop {
    /// When a round turns the directions by angles of at most about 1e-5. The exact optimum can be a few times farther away.
    #[default]
    Converged,
    /// As in CtM's code: from the third round on, when the relative error changes by less than 1e-6. The directions can then
    /// be some 1e-3 from those of convergence.
    Published,
}

/// The directions, and the share of the squared norm that they keep.
pub(super) struct TuckerFactors {
    pub left: Mat<f64>,
    pub right: Mat<f64>,
    pub kept: f64,
}

/// `[left, right]` directions of matrices of one shape that no further round improves, found from the start that the matrices
/// give: a local optimum, or the state after [`MAX_ROUNDS`].
pub(super) fn tucker_factors(
    module: &Module,
    matrices: &[Mat<f64>],
    [left_rank, right_rank]: [usize; 2],
    stop: TuckerStop,
) -> Result<TuckerFactors> {
    let all: f64 = matrices.iter().map(|matrix| matrix.squared_norm_l2()).sum();
    let transposed = || matrices.iter().map(|matrix| matrix.transpose().to_owned());
    let mut left = leading(module, matrices.to_vec(), left_rank)?;
    let mut right = leading(module, transposed().collect(), right_rank)?;
    let (mut kept, mut error) = (0.0, f64::INFINITY);
    for round in 1..=MAX_ROUNDS {
        let [old_left, old_right] = [left.clone(), right.clone()];
        left = leading(module, matrices.iter().map(|matrix| matrix * &right).collect(), left_rank)?;
        right = leading(module, transposed().map(|matrix| matrix * &left).collect(), right_rank)?;
        let core = |matrix: &Mat<f64>| (left.transpose() * matrix * &right).squared_norm_l2();
        kept = matrices.iter().map(core).sum::<f64>() / all;
        let error_before = std::mem::replace(&mut error, (1.0f64 - kept).abs().sqrt());
        let is_done = match stop {
            TuckerStop::Converged => is_same_span(&old_left, &left) && is_same_span(&old_right, &right),
            TuckerStop::Published => round >= 3 && (error - error_before).abs() < 1e-6,
        };
        if is_done {
            break;
        }
    }
    Ok(TuckerFactors { left, right, kept })
}

/// The first left singular vectors of matrices side by side.
fn leading(module: &Module, matrices: Vec<Mat<f64>>, count: usize) -> Result<Mat<f64>> {
    let rows = matrices.first().map_or(0, Mat::nrows);
    let all = side_by_side(rows, matrices.iter().map(|matrix| (matrix.as_ref(), usize::MAX)));
    let svd = all.thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
    Ok(first_columns(svd.U(), count))
}

fn first_columns(matrix: MatRef<f64>, count: usize) -> Mat<f64> {
    matrix.subcols(0, count.min(matrix.ncols())).to_owned()
}

/// Whether two matrices of orthonormal columns span nearly the same space. The squared sines of the angles between both add up
/// to the number of columns less the squared norm of `X' Y`. Down to rounding, at 1e-14, it takes some 1.5 times as many rounds.
fn is_same_span(one: &Mat<f64>, other: &Mat<f64>) -> bool {
    const NEARLY: f64 = 1e-10;
    let columns = one.ncols() as f64;
    columns - (one.transpose() * other).squared_norm_l2() <= NEARLY * columns
}
