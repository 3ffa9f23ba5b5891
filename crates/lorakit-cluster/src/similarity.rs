//! Cosine similarities of experts.

use rayon::prelude::*;

use crate::comparison_space::ComparisonSpace;
use crate::error::Result;
use crate::expert_set::ExpertSet;
use crate::gram::gram_matrix::GramMatrix;

/// The cosine similarities `[n, n]` of n experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarity {
    names: Vec<String>,
    values: Vec<f64>,
}

impl Similarity {
    /// The cosines of the vectors whose inner products these are: `<x, y> / (|x| |y|)`. A vector of zeros has cosine 0 with
    /// every other and with itself.
    pub fn from_gram(gram: GramMatrix) -> Self {
        let (names, mut values) = gram.into_parts();
        let n = names.len();
        let norms: Vec<f64> = (0..n).map(|i| values[i * n + i].max(0.0).sqrt()).collect();
        let cosine = |product: f64, i: usize, j: usize| match (norms[i], norms[j]) {
            (0.0, _) | (_, 0.0) => 0.0,
            _ if i == j => 1.0,
            (x, y) => (product / x / y).clamp(-1.0, 1.0),
        };
        // In place: for 10,000 experts the matrix takes 0.8 GB.
        values.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, value)| *value = cosine(*value, i, j));
        });
        Self { names, values }
    }

    /// The cosines of `experts` in `space`, without sparsification.
    ///
    /// # Errors
    /// As [`GramMatrix::of`].
    pub fn of(experts: &ExpertSet, space: ComparisonSpace) -> Result<Self> {
        Ok(Self::from_gram(GramMatrix::of(experts, space, 0.0)?))
    }

    /// The experts, in the order of rows and columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The cosine of experts `i` and `j`, in [-1, 1].
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.names.len() + j]
    }

    /// The rows: the cosines of one expert with all experts. The paper's k-means clusters these rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.names.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::synthetic::{Synthetic, zeroed};

    #[test]
    fn the_change_is_relative_to_the_initial_a() {
        let synthetic = Synthetic { step: 0.01, ..Synthetic::default() };
        let experts = synthetic.experts();
        let parameters = Similarity::of(&experts, ComparisonSpace::Parameters).unwrap();
        let change = Similarity::of(&experts, ComparisonSpace::Change).unwrap();
        // Experts 0 and 1 are of different families, 0 and 3 of one.
        assert!(parameters.at(0, 1) > 0.9, "the initial A dominates: {}", parameters.at(0, 1));
        assert!(change.at(0, 1).abs() < 0.2 && change.at(0, 3) > 0.3, "{} {}", change.at(0, 1), change.at(0, 3));
    }

    #[test]
    fn a_zero_expert_has_cosine_zero_and_equal_experts_have_cosine_one() {
        let mut adapters = Synthetic::default().adapters();
        let zero = zeroed(&adapters[0].1);
        adapters.push(("zero".to_owned(), zero));
        adapters.push(("twin".to_owned(), adapters[0].1.clone()));
        let similarity = Similarity::of(&ExpertSet::in_memory(adapters).unwrap(), ComparisonSpace::Delta).unwrap();
        let at = |name: &str| similarity.names().iter().position(|other| other == name).unwrap();
        assert!(similarity.rows().nth(at("zero")).unwrap().iter().all(|cosine| *cosine == 0.0));
        assert!((similarity.at(at("twin"), at("e00")) - 1.0).abs() < 1e-6);
    }
}
