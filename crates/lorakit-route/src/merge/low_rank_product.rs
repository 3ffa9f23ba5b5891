//! A delta in factored form, and its truncation: the best approximation at a given rank, in f64.
//!
//! By Eckart and Young it is the truncated singular value decomposition. The product `B A` is never computed densely:
//! with the thin QR factorizations `B = Qb Rb` and `A' = Qa Ra`, only the small core `Rb Ra'` has to be
//! decomposed. As in PEFT, the result has `B = U S` and `A = V'`.

use crate::error::Result;
use crate::merge::merge_report::Retained;
use crate::merge::module::{MergedModule, Module};
use crate::merge::rank::Rank;
use faer::{Mat, MatRef};
use lorakit_adapter::LowRank;
use lorakit_format::rng::CounterRng;
use rand_chacha::rand_core::RngCore;

/// Up to this many rows or columns, a dense delta is decomposed directly.
const MAX_DIRECT_SVD: usize = 512;

/// A delta `B A`, with `B: [out, k]` and `A: [k, in]` in f64.
pub(super) struct LowRankProduct {
    pub b: Mat<f64>,
    pub a: Mat<f64>,
}

impl LowRankProduct {
    /// `factor` times the weighted sum of the module's deltas, exactly: the factors of [`Module::summands`], in order.
    pub(super) fn sum(module: &Module, factor: f64) -> Self {
        let summands = module.summands();
        let rank = summands.iter().map(|part| part.update.rank()).sum();
        let (mut b, mut a) = (Mat::zeros(module.output, rank), Mat::zeros(rank, module.input));
        let mut at = 0;
        for part in summands {
            let weight = factor * part.weight * part.update.scale();
            let rank = part.update.rank();
            b.subcols_mut(at, rank).copy_from(widened_b(part.update, weight));
            a.subrows_mut(at, rank).copy_from(widened_a(part.update));
            at += rank;
        }
        Self { b, a }
    }

    /// The product truncated to a rank; unchanged if its rank is not above it.
    pub(super) fn truncated(self, module: &Module, rank: Rank) -> Result<MergedModule> {
        let most = self.b.ncols().min(module.input).min(module.output);
        let rank = rank.at(module, most);
        if rank >= self.b.ncols() {
            return self.exact(module);
        }
        let (b, a) = (self.b.qr(), self.a.transpose().qr());
        let core = b.thin_R() * a.thin_R().transpose();
        let svd = core.thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
        let singular: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let left = b.compute_thin_Q() * scaled_columns(svd.U().subcols(0, rank), &singular);
        let right = a.compute_thin_Q() * svd.V().subcols(0, rank);
        let retained = Retained::of(squares(&singular[..rank]), squares(&singular[rank..]));
        Ok(MergedModule { update: update(module, left.as_ref(), right.transpose())?, retained })
    }

    /// The product as it is.
    pub(super) fn exact(self, module: &Module) -> Result<MergedModule> {
        if self.b.ncols() == 0 {
            return Ok(MergedModule { update: module.zero()?, retained: Retained::ALL });
        }
        Ok(MergedModule { update: update(module, self.b.as_ref(), self.a.as_ref())?, retained: Retained::ALL })
    }
}

/// The error if a decomposition fails.
pub(super) const NO_SVD: &str = "the singular value decomposition did not converge";

/// Truncates a dense delta, `[out, in]`, to a rank.
pub(super) fn truncate(module: &Module, delta: MatRef<f64>, rank: Rank) -> Result<MergedModule> {
    let most = module.input.min(module.output);
    let rank = rank.at(module, most);
    let (left, right, retained) = if most <= MAX_DIRECT_SVD || 4 * rank >= most {
        let svd = delta.thin_svd().map_err(|_| module.arithmetic(NO_SVD))?;
        let singular: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let retained = Retained::of(squares(&singular[..rank]), squares(&singular[rank..]));
        (scaled_columns(svd.U().subcols(0, rank), &singular), svd.V().subcols(0, rank).to_owned(), retained)
    } else {
        leading(delta, rank).ok_or_else(|| module.arithmetic(NO_SVD))?
    };
    Ok(MergedModule { update: update(module, left.as_ref(), right.transpose())?, retained })
}

/// The leading `rank` singular triples of a large matrix, `(U S, V, retained)`, by subspace iteration with oversampling
/// (Halko, Martinsson and Tropp 2011, <https://arxiv.org/abs/0909.4061>, algorithm 4.4) from a fixed start, until the
/// captured squared norm no longer grows. The reported share is that of the captured subspace.
fn leading(delta: MatRef<f64>, rank: usize) -> Option<(Mat<f64>, Mat<f64>, Retained)> {
    const ROUNDS: usize = 100;
    const ENOUGH: f64 = 1e-9;
    let width = (rank + 16).max(rank + rank / 2).min(delta.nrows()).min(delta.ncols());
    let mut rng = CounterRng::seeded(0, 0);
    let mut right = Mat::from_fn(delta.ncols(), width, |_, _| f64::from(rng.next_u32() as i32) / f64::from(i32::MAX));
    let all = delta.squared_norm_l2();
    let mut before = 0.0;
    for round in 1..=ROUNDS {
        let left = (delta * &right).qr().compute_thin_Q();
        let seen = (delta.transpose() * &left).qr();
        // left' delta = R' Q', so the small R' holds the singular values within the subspace.
        let svd = seen.thin_R().thin_svd().ok()?;
        let singular: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        right = seen.compute_thin_Q();
        let inside = squares(&singular[..rank]);
        if inside - before <= ENOUGH * all || round == ROUNDS {
            let left = left * scaled_columns(svd.V().subcols(0, rank), &singular);
            let right = right * svd.U().subcols(0, rank);
            return Some((left, right, Retained::of(inside, (all - inside).max(0.0))));
        }
        before = inside;
    }
    None
}

/// The update `B A` with `B: [out, r]` and `A: [r, in]`.
pub(super) fn update(module: &Module, b: MatRef<f64>, a: MatRef<f64>) -> Result<LowRank> {
    module.update(a.nrows(), single_precision(a), single_precision(b))
}

/// `A` in f64.
pub(super) fn widened_a(update: &LowRank) -> Mat<f64> {
    widened(&update.a().values(), update.rank(), update.input(), 1.0)
}

/// `factor * B` in f64.
pub(super) fn widened_b(update: &LowRank, factor: f64) -> Mat<f64> {
    widened(&update.b().values(), update.output(), update.rank(), factor)
}

fn widened(values: &[f32], rows: usize, columns: usize, factor: f64) -> Mat<f64> {
    Mat::from_fn(rows, columns, |row, column| factor * f64::from(values[row * columns + column]))
}

/// Row-major f32 values.
pub(super) fn single_precision(matrix: MatRef<f64>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|row| (0..matrix.ncols()).map(move |column| matrix[(row, column)] as f32)).collect()
}

/// A matrix with its columns multiplied by factors, one each.
pub(super) fn scaled_columns(matrix: MatRef<f64>, factors: &[f64]) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| matrix[(row, column)] * factors[column])
}

pub(super) fn squares(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_the_subspace_iteration_keeps_its_values() {
        let mut rng = CounterRng::seeded(0, 0);
        let words = [rng.next_u32(), rng.next_u32(), rng.next_u32(), rng.next_u32()];
        assert_eq!(words, [2_811_902_828, 3_045_455_719, 3_134_767_159, 2_001_118_559]);
    }
}
