//! The Gram matrix of a set of experts.

use faer::MatRef;
use rayon::prelude::*;

use crate::comparison_space::ComparisonSpace;
use crate::error::{ClusterError, Result};
use crate::expert_set::ExpertSet;
use crate::gram::{delta, flat};

/// The inner products `[n, n]` of n experts in one space.
#[derive(Clone, Debug, PartialEq)]
pub struct GramMatrix {
    names: Vec<String>,
    values: Vec<f64>,
}

impl GramMatrix {
    /// The inner products of `experts` in `space`.
    ///
    /// With `sparsity` above 0, the values of each expert's flattened vector up to that quantile of their magnitudes are
    /// first set to zero, as in MBC. The space `delta` has no such vector and ignores it.
    ///
    /// The experts are opened a few at a time, and their values are processed in groups of bounded size. Products are f32
    /// over short blocks of coordinates, and the blocks are summed in f64 in a fixed order: the result does not depend on
    /// the number of threads.
    ///
    /// # Errors
    /// If an expert cannot be opened or overflows; if `sparsity` is not in [0, 1]; in the spaces `parameters` and
    /// `change`, if ranks or modules differ; in `change`, if the initial A is unknown.
    pub fn of(experts: &ExpertSet, space: ComparisonSpace, sparsity: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&sparsity) {
            return Err(ClusterError::Setting { name: "sparsity", value: sparsity.to_string(), expected: "0 to 1" });
        }
        let values = match space {
            ComparisonSpace::Parameters | ComparisonSpace::Change => flat::gram(experts, space, sparsity)?,
            ComparisonSpace::Delta => delta::gram(experts)?,
        };
        Self::new(experts.names().to_vec(), values)
    }

    /// Checks that no product overflowed: the adapters' values are finite, their products may not be.
    fn new(names: Vec<String>, values: Vec<f64>) -> Result<Self> {
        let count = names.len();
        let is_wrong = |(row, column): &(usize, usize)| !values[row * count + column].is_finite();
        // An expert whose values overflow does so with itself too, and spoils its products with the others.
        let mut alone = (0..count).map(|at| (at, at));
        let mut pairs = (0..count * count).map(|at| (at / count, at % count));
        match alone.find(is_wrong).or_else(|| pairs.find(is_wrong)) {
            None => Ok(Self { names, values }),
            Some((row, column)) if row == column => {
                Err(ClusterError::Overflow(format!("expert `{}` with itself", names[row])))
            }
            Some((row, column)) => {
                Err(ClusterError::Overflow(format!("experts `{}` and `{}`", names[row], names[column])))
            }
        }
    }

    /// The inner products of the rows of `points`, all of one length.
    pub(crate) fn of_points(names: &[String], points: &[Vec<f64>]) -> Result<Self> {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
        let mut values = vec![0f64; points.len() * points.len()];
        let rows = values.par_chunks_exact_mut(points.len().max(1)).zip(points);
        rows.for_each(|(row, x)| row.iter_mut().zip(points).for_each(|(value, y)| *value = dot(x, y)));
        Self::new(names.to_vec(), values)
    }

    /// The experts, in the order of rows and columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The experts, and the inner products row by row.
    pub(crate) fn into_parts(self) -> (Vec<String>, Vec<f64>) {
        (self.names, self.values)
    }

    /// The matrix itself.
    pub(crate) fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.values, self.names.len(), self.names.len())
    }

    /// The inner product of experts `i` and `j`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.names.len() + j]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::synthetic::{Synthetic, adapter, scaled_values};

    fn dot(adapters: &[(String, lorakit_adapter::Adapter)], i: usize, j: usize) -> f64 {
        adapters[i].1.dot(&adapters[j].1).unwrap()
    }

    #[test]
    fn stacked_products_equal_pairwise_products() {
        let ranks = [1, 3, 2, 4, 70];
        let adapters: Vec<_> = (0..40)
            .map(|i| (format!("e{i:02}"), adapter(i as u64, ranks[i % 5], 0.5 + i as f64, i % 4 != 1)))
            .collect();
        let gram =
            GramMatrix::of(&ExpertSet::in_memory(adapters.clone()).unwrap(), ComparisonSpace::Delta, 0.0).unwrap();
        for i in 0..40 {
            for j in 0..40 {
                let scale = (dot(&adapters, i, i) * dot(&adapters, j, j)).sqrt();
                assert!((gram.at(i, j) - dot(&adapters, i, j)).abs() < 1e-6 * scale, "{i} {j}");
            }
        }
    }

    #[test]
    fn parameters_are_compared_without_scale_and_a_shared_a_counts_once() {
        let synthetic = Synthetic { tied: true, ..Synthetic::default() };
        let adapters = synthetic.adapters();
        let flat = |index: usize| -> Vec<f64> {
            let modules = adapters[index].1.modules();
            let a = modules.iter().filter(|(name, _)| !name.ends_with("k_proj") && !name.ends_with("v_proj"));
            let a = a.flat_map(|(_, update)| update.a().values().to_vec());
            let b = modules.values().flat_map(|update| update.b().values().to_vec());
            // q, k and v share one A, and any of them may represent the three: here q.
            a.chain(b).map(f64::from).collect()
        };
        let gram =
            GramMatrix::of(&ExpertSet::in_memory(adapters.clone()).unwrap(), ComparisonSpace::Parameters, 0.0).unwrap();
        for i in 0..adapters.len() {
            for j in 0..adapters.len() {
                let naive: f64 = flat(i).iter().zip(flat(j)).map(|(x, y)| x * y).sum();
                assert!((gram.at(i, j) - naive).abs() < 1e-5 * gram.at(i, i), "{i} {j}");
            }
        }
    }

    #[test]
    fn the_change_needs_the_initial_a() {
        let experts = ExpertSet::in_memory(Synthetic::default().adapters()).unwrap();
        assert!(matches!(GramMatrix::of(&experts, ComparisonSpace::Change, 0.0), Err(ClusterError::NoInitialA)));
    }

    #[test]
    fn flattened_experts_of_different_ranks_are_refused() {
        let adapters =
            [("first".to_owned(), adapter(0, 2, 1.0, true)), ("second".to_owned(), adapter(1, 3, 1.0, true))];
        let experts = ExpertSet::in_memory(adapters).unwrap();
        let error = GramMatrix::of(&experts, ComparisonSpace::Parameters, 0.5).unwrap_err().to_string();
        for part in ["`first`", "`second`", "rank 2 in the first and 3 in the second", "--space delta", "k_proj"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(GramMatrix::of(&experts, ComparisonSpace::Delta, 0.5).is_ok());
    }

    #[test]
    fn overflow_is_an_error_that_names_the_expert() {
        let huge = scaled_values(&adapter(0, 2, 1.0, true), 1e30);
        let adapters = [("a".to_owned(), adapter(1, 2, 1.0, true)), ("huge".to_owned(), huge)];
        let experts = ExpertSet::in_memory(adapters).unwrap();
        for space in [ComparisonSpace::Parameters, ComparisonSpace::Delta] {
            let error = GramMatrix::of(&experts, space, 0.0).unwrap_err();
            assert!(matches!(&error, ClusterError::Overflow(of) if of == "expert `huge` with itself"), "{error}");
        }
        let names = ["a", "b"].map(str::to_owned).to_vec();
        let error = GramMatrix::new(names, vec![1.0, f64::INFINITY, f64::INFINITY, 1.0]).unwrap_err();
        assert!(matches!(&error, ClusterError::Overflow(of) if of == "experts `a` and `b`"), "{error}");
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let adapters = Synthetic::default().adapters();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let experts = ExpertSet::in_memory(adapters.clone()).unwrap();
                [ComparisonSpace::Parameters, ComparisonSpace::Delta]
                    .map(|space| GramMatrix::of(&experts, space, 0.5).unwrap())
            })
        };
        assert_eq!(with(1), with(3));
    }
}
