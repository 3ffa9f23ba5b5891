//! MBC, model-based clustering: experts are alike when their parameters are (arXiv 2405.11157, Algorithm 1).
//!
//! As in the authors' code: flattened parameters, sparsified per expert at a quantile of their magnitudes, then a
//! truncated SVD, rows of length 1, their cosines, and k-means on the rows of the cosine matrix. What the code does
//! by random projections is exact here. In the space `delta` the vectors are the deltas s B A, known by their inner
//! products alone, so nothing is sparsified; the rest is the same.

use serde::{Deserialize, Serialize};

use crate::kmeans::{check_k, kmeans};
use crate::spectral::embed;
use crate::{Experts, Gram, Partition, Result, Similarity, Space};

/// The points that k-means works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// The rows of the cosine matrix, as published.
    #[default]
    Similarity,
    /// The rows of the embedding themselves. The authors found an adjusted Rand index of 0.476 between the two.
    Embedding,
}

/// What MBC is to do. The defaults are the paper's, but for the space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MbcOptions {
    /// What of the adapters is compared.
    pub space: Space,
    /// The quantile, in [0, 1], of an expert's magnitudes below which its values count as zero. Not used in
    /// [`Space::Delta`].
    pub sparsity: f64,
    /// How many singular directions are kept, at most n.
    pub components: usize,
    /// The number of clusters.
    pub k: usize,
    /// The seed of k-means.
    pub seed: u64,
    /// The points of k-means.
    pub on: On,
}

impl Default for MbcOptions {
    fn default() -> Self {
        Self { space: Space::Delta, sparsity: 0.5, components: 64, k: 10, seed: 0, on: On::Similarity }
    }
}

/// Experts embedded for clustering: all of MBC but the choice of k.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// The cosines of the embedded experts.
    pub similarity: Similarity,
    /// Per expert, a row of length 1, or of zeros where the expert has no direction.
    pub embedding: Vec<Vec<f64>>,
    /// The points of k-means.
    pub on: On,
    /// The seed of k-means.
    pub seed: u64,
}

impl Embedded {
    /// Embeds the experts; `k` is not looked at. This is the part that reads them.
    ///
    /// # Errors
    /// As [`Gram::of`], and if `components` is 0.
    pub fn of(experts: &Experts, options: &MbcOptions) -> Result<Self> {
        let gram = Gram::of(experts, options.space, options.sparsity)?;
        let embedding = embed(&gram, options.components)?;
        let similarity = Gram::of_points(gram.names(), &embedding)?.similarity();
        Ok(Self { similarity, embedding, on: options.on, seed: options.seed })
    }

    /// The k-means clusters of the embedded experts.
    ///
    /// # Errors
    /// If k is 0, or more than the experts that differ.
    pub fn partition(&self, k: usize) -> Result<Partition> {
        let labels = match self.on {
            On::Similarity => {
                let rows: Vec<Vec<f64>> = self.similarity.rows().map(<[f64]>::to_vec).collect();
                kmeans(&rows, k, self.seed)?
            }
            On::Embedding => kmeans(&self.embedding, k, self.seed)?,
        };
        Ok(Partition::new(self.similarity.names(), &labels))
    }
}

/// Clusters the experts by MBC.
///
/// # Errors
/// As [`Embedded::of`] and [`Embedded::partition`]; an impossible k is refused before any expert is read.
pub fn mbc(experts: &Experts, options: &MbcOptions) -> Result<Partition> {
    check_k(options.k, experts.len())?;
    Embedded::of(experts, options)?.partition(options.k)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::Error;
    use crate::adjusted_rand::adjusted_rand;
    use crate::planted::{Planted, zeroed};
    use lorakit_adapter::{Adapter, LowRank, Matrix};

    fn options(space: Space, k: usize) -> MbcOptions {
        MbcOptions { space, k, ..MbcOptions::default() }
    }

    #[test]
    fn planted_families_are_found_in_every_space() {
        let planted = Planted { step: 2.0, ..Planted::default() };
        for space in Space::ALL {
            for on in [On::Similarity, On::Embedding] {
                let found = mbc(&planted.experts(), &MbcOptions { on, ..options(space, 3) }).unwrap();
                assert_eq!(adjusted_rand(found.labels(), &planted.labels()).unwrap(), 1.0, "{space} {on:?}");
            }
        }
    }

    /// The same delta at another rank and scale: rows of zeros added, and s moved into B.
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
    fn families_of_different_rank_and_alpha_are_found_by_what_they_do() {
        let planted = Planted { step: 2.0, ..Planted::default() };
        let mut adapters = planted.adapters();
        for (index, (_, adapter)) in adapters.iter_mut().enumerate() {
            *adapter = widened(adapter, 2 + index % 5, 0.5 + index as f64);
        }
        let experts = Experts::in_memory(adapters).unwrap();
        let found = mbc(&experts, &options(Space::Delta, 3)).unwrap();
        assert_eq!(adjusted_rand(found.labels(), &planted.labels()).unwrap(), 1.0);
        let same = Similarity::of(&planted.experts(), Space::Delta).unwrap();
        let widened = Similarity::of(&experts, Space::Delta).unwrap();
        assert!((same.at(0, 3) - widened.at(0, 3)).abs() < 1e-5);
    }

    #[test]
    fn one_seed_gives_one_result() {
        let experts = Planted { experts: 30, ..Planted::default() }.experts();
        let run = || mbc(&experts, &options(Space::Parameters, 7)).unwrap();
        assert_eq!(run(), run());
    }

    #[test]
    fn impossible_numbers_of_clusters_are_refused() {
        let experts = Planted::default().experts();
        assert!(matches!(mbc(&experts, &options(Space::Delta, 0)), Err(Error::ZeroClusters)));
        assert!(matches!(
            mbc(&experts, &options(Space::Delta, 13)),
            Err(Error::TooManyClusters { k: 13, experts: 12 })
        ));
    }

    #[test]
    fn identical_experts_are_one_point() {
        let (_, adapter) = Planted::default().adapters().swap_remove(0);
        let twins = ["a", "b", "c"].map(|name| (name.to_owned(), adapter.clone()));
        let experts = Experts::in_memory(twins).unwrap();
        let refused = mbc(&experts, &options(Space::Delta, 2)).unwrap_err();
        assert!(matches!(refused, Error::TooFewDistinct { k: 2, points: 3, distinct: 1 }), "{refused}");
        assert_eq!(mbc(&experts, &options(Space::Delta, 1)).unwrap().k(), 1);
    }

    #[test]
    fn an_untrained_expert_falls_into_no_family() {
        let planted = Planted { step: 2.0, ..Planted::default() };
        let mut adapters = planted.adapters();
        adapters.push(("untrained".to_owned(), zeroed(&adapters[0].1)));
        let found = mbc(&Experts::in_memory(adapters).unwrap(), &options(Space::Delta, 4)).unwrap();
        assert_eq!(found.members()[3], [12]);
    }
}
