//! How alike experts are: inner products and cosines in three spaces.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Experts, Result, delta, flat};

/// What of two adapters is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// The values of A and B, flattened, without their scale: the published form (arXiv 2405.11157, Algorithm 1).
    /// A tied A counts once. After little training the common starting A drowns everything else.
    Parameters,
    /// A minus the common starting A, and B, flattened: what training has changed.
    Change,
    /// What the adapters do to the base: `s B A`, compared by `<s1 B1 A1, s2 B2 A2>` summed over the modules.
    /// Ranks, scales and sets of modules may differ; a module that one expert lacks counts as zero.
    #[default]
    Delta,
}

impl Space {
    /// All spaces, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Delta, Self::Change, Self::Parameters];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Change => "change",
            Self::Delta => "delta",
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The inner products `[n, n]` of n experts in one space, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    names: Vec<String>,
    values: Vec<f64>,
}

impl Gram {
    /// The inner products of `experts` in `space`.
    ///
    /// With `sparsity` above 0, each expert's flattened vector first loses its values up to that quantile of their
    /// magnitudes, as MBC does. The space `delta` has no such vector and takes no notice of it.
    ///
    /// The experts are opened a few at a time and their values are worked on in groups of bounded size. Products
    /// are f32 over short runs of coordinates, and the sum of the runs is f64 in a fixed order: the result does not
    /// depend on the number of threads.
    ///
    /// # Errors
    /// If an expert cannot be opened or overflows; if `sparsity` is not in [0, 1]; in the spaces `parameters` and
    /// `change`, if ranks or modules differ; in `change`, if the starting A is unknown.
    pub fn of(experts: &Experts, space: Space, sparsity: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&sparsity) {
            return Err(Error::Setting { name: "sparsity", value: sparsity.to_string(), expected: "0 to 1" });
        }
        let values = match space {
            Space::Parameters | Space::Change => flat::gram(experts, space, sparsity)?,
            Space::Delta => delta::gram(experts)?,
        };
        Self::new(experts.names().to_vec(), values)
    }

    /// Checks that nothing overflowed: the adapters' values are finite, their products need not be.
    fn new(names: Vec<String>, values: Vec<f64>) -> Result<Self> {
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::NotFinite { what: "expert", name: names[at / names.len()].clone() }),
            None => Ok(Self { names, values }),
        }
    }

    /// The Gram matrix of the rows of `points`, all of one length.
    pub(crate) fn of_points(names: &[String], points: &[Vec<f64>]) -> Result<Self> {
        let dot = |x: &Vec<f64>, y: &Vec<f64>| x.iter().zip(y).map(|(x, y)| x * y).sum();
        let values = points.iter().flat_map(|x| points.iter().map(move |y| dot(x, y))).collect();
        Self::new(names.to_vec(), values)
    }

    /// The experts, in the order of rows and columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The inner product of experts `i` and `j`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.names.len() + j]
    }

    /// The cosines. An expert without direction (all of it zero) has cosine 0 with all, itself included.
    pub fn similarity(&self) -> Similarity {
        let n = self.names.len();
        let norms: Vec<f64> = (0..n).map(|i| self.at(i, i).max(0.0).sqrt()).collect();
        let cosine = |i: usize, j: usize| match (norms[i], norms[j]) {
            (0.0, _) | (_, 0.0) => 0.0,
            _ if i == j => 1.0,
            (x, y) => (self.at(i, j) / x / y).clamp(-1.0, 1.0),
        };
        let values = (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| cosine(i, j)).collect();
        Similarity { names: self.names.clone(), values }
    }
}

/// The cosines `[n, n]` of n experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarity {
    names: Vec<String>,
    values: Vec<f64>,
}

impl Similarity {
    /// The cosines of `experts` in `space`, nothing sparsified.
    ///
    /// # Errors
    /// As [`Gram::of`].
    pub fn of(experts: &Experts, space: Space) -> Result<Self> {
        Ok(Gram::of(experts, space, 0.0)?.similarity())
    }

    /// The experts, in the order of rows and columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The cosine of experts `i` and `j`, in [-1, 1].
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.names.len() + j]
    }

    /// The rows: expert i's cosines with all experts. These are the points that the paper's k-means works on.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.names.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::planted::{Planted, adapter};

    fn dot(adapters: &[(String, lorakit_adapter::Adapter)], i: usize, j: usize) -> f64 {
        adapters[i].1.dot(&adapters[j].1).unwrap()
    }

    #[test]
    fn the_stacked_products_of_deltas_are_the_pairwise_ones() {
        let ranks = [1, 3, 2, 4, 70];
        let adapters: Vec<_> = (0..40)
            .map(|i| (format!("e{i:02}"), adapter(i as u64, ranks[i % 5], 0.5 + i as f64, i % 4 != 1)))
            .collect();
        let gram = Gram::of(&Experts::in_memory(adapters.clone()).unwrap(), Space::Delta, 0.0).unwrap();
        for i in 0..40 {
            for j in 0..40 {
                let scale = (dot(&adapters, i, i) * dot(&adapters, j, j)).sqrt();
                assert!((gram.at(i, j) - dot(&adapters, i, j)).abs() < 1e-6 * scale, "{i} {j}");
            }
        }
    }

    #[test]
    fn flattened_parameters_are_compared_without_scale_and_a_tied_a_counts_once() {
        let planted = Planted { tied: true, ..Planted::default() };
        let adapters = planted.adapters();
        let flat = |index: usize| -> Vec<f64> {
            let modules = adapters[index].1.modules();
            let a = modules.iter().filter(|(name, _)| !name.ends_with("k_proj") && !name.ends_with("v_proj"));
            let a = a.flat_map(|(_, update)| update.a().values().to_vec());
            let b = modules.values().flat_map(|update| update.b().values().to_vec());
            // The first of a tie by name is k_proj; q and v repeat it. Any one of them may stand for the three.
            a.chain(b).map(f64::from).collect()
        };
        let gram = Gram::of(&Experts::in_memory(adapters.clone()).unwrap(), Space::Parameters, 0.0).unwrap();
        for i in 0..adapters.len() {
            for j in 0..adapters.len() {
                let naive: f64 = flat(i).iter().zip(flat(j)).map(|(x, y)| x * y).sum();
                assert!((gram.at(i, j) - naive).abs() < 1e-5 * gram.at(i, i), "{i} {j}");
            }
        }
    }

    #[test]
    fn the_change_is_measured_from_the_common_start() {
        let planted = Planted { step: 0.01, ..Planted::default() };
        let experts = planted.experts();
        let parameters = Similarity::of(&experts, Space::Parameters).unwrap();
        let change = Similarity::of(&experts, Space::Change).unwrap();
        // Experts 0 and 1 are of different families, 0 and 3 of one.
        assert!(parameters.at(0, 1) > 0.9, "the start drowns the difference: {}", parameters.at(0, 1));
        assert!(change.at(0, 1).abs() < 0.2 && change.at(0, 3) > 0.3, "{} {}", change.at(0, 1), change.at(0, 3));
    }

    #[test]
    fn the_change_needs_the_start() {
        let experts = Experts::in_memory(Planted::default().adapters()).unwrap();
        assert!(matches!(Gram::of(&experts, Space::Change, 0.0), Err(Error::NoStart)));
    }

    #[test]
    fn experts_of_different_rank_are_refused_by_name_where_they_must_be_aligned() {
        let adapters =
            [("first".to_owned(), adapter(0, 2, 1.0, true)), ("second".to_owned(), adapter(1, 3, 1.0, true))];
        let experts = Experts::in_memory(adapters).unwrap();
        let error = Gram::of(&experts, Space::Parameters, 0.5).unwrap_err().to_string();
        for part in ["`first`", "`second`", "rank 2 in the first and 3 in the second", "--space delta", "k_proj"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(Gram::of(&experts, Space::Delta, 0.5).is_ok());
    }

    #[test]
    fn a_zero_expert_is_like_nothing_and_equal_experts_are_alike() {
        let mut adapters = Planted::default().adapters();
        let zero = crate::planted::zeroed(&adapters[0].1);
        adapters.push(("zero".to_owned(), zero));
        adapters.push(("twin".to_owned(), adapters[0].1.clone()));
        let similarity = Similarity::of(&Experts::in_memory(adapters).unwrap(), Space::Delta).unwrap();
        let at = |name: &str| similarity.names().iter().position(|other| other == name).unwrap();
        assert!(similarity.rows().nth(at("zero")).unwrap().iter().all(|cosine| *cosine == 0.0));
        assert!((similarity.at(at("twin"), at("e00")) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn values_that_overflow_are_blamed_on_their_expert() {
        let huge = crate::planted::scaled_values(&adapter(0, 2, 1.0, true), 1e30);
        let adapters = [("a".to_owned(), adapter(1, 2, 1.0, true)), ("huge".to_owned(), huge)];
        let experts = Experts::in_memory(adapters).unwrap();
        for space in [Space::Parameters, Space::Delta] {
            let error = Gram::of(&experts, space, 0.0).unwrap_err();
            assert!(matches!(&error, Error::NotFinite { .. }), "{error}");
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let adapters = Planted::default().adapters();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let experts = Experts::in_memory(adapters.clone()).unwrap();
                [Space::Parameters, Space::Delta].map(|space| Gram::of(&experts, space, 0.5).unwrap())
            })
        };
        assert_eq!(with(1), with(3));
    }
}
