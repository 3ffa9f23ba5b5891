//! One rank and one scale for all modules of an adapter, for programs that know no `rank_pattern` and no `alpha_pattern`.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::error::{Result, Within};
use crate::low_rank::LowRank;
use crate::matrix::Matrix;

impl Adapter {
    /// The same updates with one rank and one scale for all modules, so that its configuration needs no patterns: A is
    /// padded with rows of zeros and B with columns of zeros to the largest rank, and scales that differ from the most
    /// common one are folded into B, each of whose values is then rounded once.
    ///
    /// # Errors
    /// If a folded value is not finite; the error names the module.
    pub fn with_one_rank(self) -> Result<Self> {
        let rank = self.modules().values().map(LowRank::rank).max().unwrap_or(0);
        let scale = most_common_scale(self.modules().values());
        let uniform = |(path, update): (&String, &LowRank)| {
            let same = update.rank() == rank && update.scale() == scale;
            let update = if same { Ok(update.clone()) } else { padded(update, rank, scale) };
            Ok((path.clone(), update.within(|| format!("module `{path}`"))?))
        };
        let modules = self.modules().iter().map(uniform).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(self.with_updates(modules))
    }
}

/// The most common scale that is not 0; of equally common ones the smallest.
fn most_common_scale<'a>(updates: impl Iterator<Item = &'a LowRank>) -> f64 {
    let mut counts: Vec<(f64, usize)> = Vec::new();
    for scale in updates.map(LowRank::scale).filter(|scale| *scale != 0.0) {
        match counts.iter_mut().find(|(known, _)| *known == scale) {
            Some((_, count)) => *count += 1,
            None => counts.push((scale, 1)),
        }
    }
    let most = counts.into_iter().max_by(|(a, many), (b, more)| many.cmp(more).then(b.total_cmp(a)));
    most.map_or(1.0, |(scale, _)| scale)
}

/// The update `s B A` as one of rank `rank` and scale `scale`.
fn padded(update: &LowRank, rank: usize, scale: f64) -> Result<LowRank> {
    let mut a = update.a().values().into_owned();
    a.resize(rank * update.input(), 0.0);
    let mut b = Vec::with_capacity(rank * update.output());
    let factor = update.scale() / scale;
    for row in update.b().values().chunks_exact(update.rank()) {
        b.extend(row.iter().map(|value| (f64::from(*value) * factor) as f32));
        b.resize(b.len() + rank - update.rank(), 0.0);
    }
    LowRank::new(Matrix::new(rank, update.input(), a)?, Matrix::new(update.output(), rank, b)?, scale)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn update(rank: usize, scale: f64) -> LowRank {
        let values = |count: usize| (0..count).map(|at| at as f32 - 1.5).collect();
        LowRank::new(
            Matrix::new(rank, 3, values(3 * rank)).unwrap(),
            Matrix::new(2, rank, values(2 * rank)).unwrap(),
            scale,
        )
        .unwrap()
    }

    #[test]
    fn ranks_and_scales_become_one_and_the_deltas_stay() {
        let modules = BTreeMap::from([
            ("q".to_owned(), update(1, 4.0)),
            ("k".to_owned(), update(3, 2.0)),
            ("v".to_owned(), update(2, 2.0)),
            ("o".to_owned(), update(2, 0.0)),
        ]);
        let before = Adapter::new(modules);
        let after = before.clone().with_one_rank().unwrap();
        for (path, update) in after.modules() {
            assert_eq!((update.rank(), update.scale()), (3, 2.0), "{path}");
            assert_eq!(update.delta(), before.modules()[path].delta(), "{path}");
        }
    }

    #[test]
    fn what_has_one_rank_and_scale_is_left_as_it_is() {
        let before = Adapter::new(BTreeMap::from([("q".to_owned(), update(2, 0.3)), ("v".to_owned(), update(2, 0.3))]));
        assert_eq!(before.clone().with_one_rank().unwrap().modules(), before.modules());
    }
}
