//! MBC, model-based clustering: experts are similar if their parameters are (arXiv:2405.11157, Algorithm 1).
//!
//! The steps are those of the authors' code:
//! 1. flatten the parameters of each expert, and set values below a quantile of their magnitudes to zero;
//! 2. truncated SVD `X = U Σ V'` of the matrix of these vectors, and the rows of U Σ at length 1;
//! 3. the cosines of these rows;
//! 4. k-means on the rows of the cosine matrix.
//!
//! The SVD is exact here, where the authors' code uses random projections. In the space `delta` the vectors are the deltas
//! s B A, which are known by their inner products only, so that step 1 is left out.

use faer::{Mat, Side};
use serde::{Deserialize, Serialize};

use crate::comparison_space::ComparisonSpace;
use crate::error::{ClusterError, Result};
use crate::expert_set::ExpertSet;
use crate::gram::gram_matrix::GramMatrix;
use crate::kmeans::{check_k, kmeans};
use crate::partition::Partition;
use crate::similarity::Similarity;
use crate::spectral_embedding::spectral_embedding;

/// The points that k-means clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KMeansInput {
    /// The rows of the cosine matrix, as published.
    #[default]
    Similarity,
    /// The rows of the embedding. The authors report an adjusted Rand index of 0.476 between the two.
    Embedding,
}

/// The settings of MBC. The defaults are the paper's, except for the space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MbcOptions {
    /// What is compared of the adapters.
    pub space: ComparisonSpace,
    /// The quantile, in [0, 1], of an expert's magnitudes below which its values count as zero. Not used in
    /// [`ComparisonSpace::Delta`].
    pub sparsity: f64,
    /// The number of singular directions, at most n.
    pub components: usize,
    /// The number of clusters.
    pub k: usize,
    /// The seed of k-means.
    pub seed: u64,
    /// The points that k-means clusters.
    #[serde(rename = "on")]
    pub kmeans_input: KMeansInput,
}

impl Default for MbcOptions {
    fn default() -> Self {
        Self {
            space: ComparisonSpace::Delta,
            sparsity: 0.5,
            components: 64,
            k: 10,
            seed: 0,
            kmeans_input: KMeansInput::Similarity,
        }
    }
}

/// Embedded experts: MBC before k-means.
#[derive(Clone, Debug, PartialEq)]
pub struct MbcEmbedding {
    /// The cosines of the embedded experts.
    pub similarity: Similarity,
    /// The cosines of the experts themselves, where no values were set to zero: in [`ComparisonSpace::Delta`].
    pub exact: Option<Similarity>,
    /// A row for each expert, at length 1, or zeros for an expert of zeros.
    pub embedding: Vec<Vec<f64>>,
    /// The points that k-means clusters.
    pub kmeans_input: KMeansInput,
    /// The seed of k-means.
    pub seed: u64,
}

impl MbcEmbedding {
    /// Reads and embeds the experts; `k` is not used.
    ///
    /// # Errors
    /// As [`GramMatrix::of`], and if `components` is 0.
    pub fn of(experts: &ExpertSet, options: &MbcOptions) -> Result<Self> {
        let gram = GramMatrix::of(experts, options.space, options.sparsity)?;
        let embedding = spectral_embedding(&gram, options.components)?;
        let names = gram.names().to_vec();
        let exact = (options.space == ComparisonSpace::Delta).then(|| Similarity::from_gram(gram));
        let similarity = Similarity::from_gram(GramMatrix::of_points(&names, &embedding)?);
        Ok(Self { similarity, exact, embedding, kmeans_input: options.kmeans_input, seed: options.seed })
    }

    /// The k-means clusters of the embedded experts.
    ///
    /// # Errors
    /// If k is 0 or exceeds the number of distinct experts.
    pub fn partition(&self, k: usize) -> Result<Partition> {
        let labels = match self.kmeans_input {
            KMeansInput::Similarity => kmeans(&self.similarity_points()?, k, self.seed)?,
            KMeansInput::Embedding => kmeans(&self.embedding, k, self.seed)?,
        };
        Ok(Partition::new(self.similarity.names(), &labels))
    }

    /// Points with the distances of the rows of the cosine matrix: these rows, or for more experts than components c the
    /// rows of `E (E'E)^1/2`, `[n, c]`, where E is the embedding. The cosines are `E E'`, so two of their rows differ by
    /// `E (e_i - e_j)`, whose squared length is `(e_i - e_j)' E'E (e_i - e_j)`. Beyond a few hundred experts k-means on
    /// rows of length n would take longer than all products of the experts.
    fn similarity_points(&self) -> Result<Vec<Vec<f64>>> {
        let (n, components) = (self.embedding.len(), self.embedding.first().map_or(0, Vec::len));
        if n <= components {
            return Ok(self.similarity.rows().map(<[f64]>::to_vec).collect());
        }
        let embedding = Mat::from_fn(n, components, |i, j| self.embedding[i][j]);
        let squared = embedding.transpose() * &embedding;
        let eigen =
            squared.self_adjoint_eigen(Side::Lower).map_err(|_| ClusterError::Numerical("the eigendecomposition"))?;
        // Rounding can make the eigenvalues of a singular matrix negative. The rotation back is left out: it keeps
        // distances.
        let roots = eigen.S().column_vector().iter().map(|value| value.max(0.0).sqrt()).collect::<Vec<f64>>();
        let points = &embedding * eigen.U();
        Ok((0..n).map(|i| (0..components).map(|j| points[(i, j)] * roots[j]).collect()).collect())
    }
}

/// Clusters the experts by MBC.
///
/// # Errors
/// As [`MbcEmbedding::of`] and [`MbcEmbedding::partition`]. An impossible k is an error before any expert is read.
pub fn mbc(experts: &ExpertSet, options: &MbcOptions) -> Result<Partition> {
    check_k(options.k, experts.len())?;
    MbcEmbedding::of(experts, options)?.partition(options.k)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::adjusted_rand::adjusted_rand;
    use crate::synthetic::{Synthetic, zeroed};
    use lorakit_adapter::{Adapter, LowRank, Matrix};

    fn options(space: ComparisonSpace, k: usize) -> MbcOptions {
        MbcOptions { space, k, ..MbcOptions::default() }
    }

    #[test]
    fn families_are_found_in_every_space() {
        let synthetic = Synthetic { step: 2.0, ..Synthetic::default() };
        for space in ComparisonSpace::ALL {
            for kmeans_input in [KMeansInput::Similarity, KMeansInput::Embedding] {
                let found = mbc(&synthetic.experts(), &MbcOptions { kmeans_input, ..options(space, 3) }).unwrap();
                assert_eq!(
                    adjusted_rand(found.labels(), &synthetic.labels()).unwrap(),
                    1.0,
                    "{space} {kmeans_input:?}"
                );
            }
        }
    }

    #[test]
    fn points_of_few_components_have_the_distances_of_the_cosine_matrix() {
        let options = MbcOptions { components: 5, ..MbcOptions::default() };
        let embedded = MbcEmbedding::of(&Synthetic::default().experts(), &options).unwrap();
        let rows: Vec<Vec<f64>> = embedded.similarity.rows().map(<[f64]>::to_vec).collect();
        let points = embedded.similarity_points().unwrap();
        assert!(points.len() == rows.len() && points.iter().all(|point| point.len() == 5));
        let distance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        for i in 0..rows.len() {
            for j in 0..i {
                let (found, expected) = (distance(&points[i], &points[j]), distance(&rows[i], &rows[j]));
                assert!((found - expected).abs() < 1e-9, "{i} {j}: {found} {expected}");
            }
        }
    }

    /// The same delta with another rank and scale: zeros added to B, and s moved into B.
    fn widened(adapter: &Adapter, rank: usize, scale: f64) -> Adapter {
        let widen = |update: &LowRank| {
            let (a, b) = (update.a().values(), update.b().values());
            let mut wide_a = a.to_vec();
            wide_a.resize(rank * update.input(), 0.25);
            let factor = (update.scale() / scale) as f32;
            let wide_b = b.chunks(update.rank()).flat_map(|row| {
                row.iter()
                    .map(|value| factor * value)
                    .chain(std::iter::repeat_n(0.0, rank - row.len()))
                    .collect::<Vec<_>>()
            });
            let b = Matrix::new(update.output(), rank, wide_b.collect()).unwrap();
            LowRank::new(Matrix::new(rank, update.input(), wide_a).unwrap(), b, scale).unwrap()
        };
        Adapter::new(adapter.modules().iter().map(|(name, update)| (name.clone(), widen(update))).collect())
    }

    #[test]
    fn families_are_found_whatever_the_ranks_and_scales() {
        let synthetic = Synthetic { step: 2.0, ..Synthetic::default() };
        let mut adapters = synthetic.adapters();
        for (index, (_, adapter)) in adapters.iter_mut().enumerate() {
            *adapter = widened(adapter, 2 + index % 5, 0.5 + index as f64);
        }
        let experts = ExpertSet::in_memory(adapters).unwrap();
        let found = mbc(&experts, &options(ComparisonSpace::Delta, 3)).unwrap();
        assert_eq!(adjusted_rand(found.labels(), &synthetic.labels()).unwrap(), 1.0);
        let same = Similarity::of(&synthetic.experts(), ComparisonSpace::Delta).unwrap();
        let widened = Similarity::of(&experts, ComparisonSpace::Delta).unwrap();
        assert!((same.at(0, 3) - widened.at(0, 3)).abs() < 1e-5);
    }

    #[test]
    fn the_same_seed_gives_the_same_result() {
        let experts = Synthetic { experts: 30, ..Synthetic::default() }.experts();
        let run = || mbc(&experts, &options(ComparisonSpace::Parameters, 7)).unwrap();
        assert_eq!(run(), run());
    }

    #[test]
    fn impossible_numbers_of_clusters_are_errors() {
        let experts = Synthetic::default().experts();
        assert!(matches!(mbc(&experts, &options(ComparisonSpace::Delta, 0)), Err(ClusterError::ZeroClusters)));
        assert!(matches!(
            mbc(&experts, &options(ComparisonSpace::Delta, 13)),
            Err(ClusterError::TooManyClusters { k: 13, points: 12 })
        ));
    }

    #[test]
    fn identical_experts_are_one_point() {
        let (_, adapter) = Synthetic::default().adapters().swap_remove(0);
        let twins = ["a", "b", "c"].map(|name| (name.to_owned(), adapter.clone()));
        let experts = ExpertSet::in_memory(twins).unwrap();
        let refused = mbc(&experts, &options(ComparisonSpace::Delta, 2)).unwrap_err();
        assert!(matches!(refused, ClusterError::TooFewDistinct { k: 2, points: 3, distinct: 1 }), "{refused}");
        assert_eq!(mbc(&experts, &options(ComparisonSpace::Delta, 1)).unwrap().k(), 1);
    }

    #[test]
    fn an_untrained_expert_gets_a_cluster_of_its_own() {
        let synthetic = Synthetic { step: 2.0, ..Synthetic::default() };
        let mut adapters = synthetic.adapters();
        adapters.push(("untrained".to_owned(), zeroed(&adapters[0].1)));
        let found = mbc(&ExpertSet::in_memory(adapters).unwrap(), &options(ComparisonSpace::Delta, 4)).unwrap();
        assert_eq!(found.members()[3], [12]);
    }
}
