//! Clusters of adapters by the similarity of their parameters (MBC), and baselines.
//!
//! Experts with similar parameters were trained on similar tasks; a cluster of them is a set of tasks on which it is worth
//! training one expert (arXiv:2405.11157). This crate compares adapters in three [`ComparisonSpace`]s, clusters them, reads
//! and writes clusters.json, and reports on a clustering. It works on thousands of adapters with millions of values each
//! without holding them all in memory, and its results do not depend on the number of threads.
//!
//! Deliberately absent: models, tokenizers, routers and training. Tasks are names here, embeddings are given as vectors,
//! and nothing is printed. Every error is a [`ClusterError`].
//!
//! - [`ExpertSet`]: names, and how to open an adapter.
//! - [`GramMatrix`] and [`Similarity`]: inner products and cosines in one space.
//! - [`mbc()`], [`random_clusters`] and [`embedding_clusters`] give a [`Partition`]; [`MbcEmbedding`] is MBC before k-means.
//! - [`Clusters`]: clusters.json; [`read_published`]: the clusters that the authors of MBC published.
//! - [`ClusteringReport`], made of [`SpaceSimilarities`] and the [`silhouette_curve`].
//!
//! ```
//! use std::collections::BTreeMap;
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//! use lorakit_cluster::{ExpertSet, MbcOptions, mbc};
//!
//! // Rank 1 on one module: the delta of an expert is the outer product of its B and its A.
//! let expert = |a: [f32; 2], b: [f32; 2]| -> Result<Adapter, Box<dyn std::error::Error>> {
//!     let update = LowRank::new(Matrix::new(1, 2, a.to_vec())?, Matrix::new(2, 1, b.to_vec())?, 2.0)?;
//!     Ok(Adapter::new(BTreeMap::from([("layers.0.q_proj".to_owned(), update)])))
//! };
//! let experts = ExpertSet::in_memory([
//!     ("add".to_owned(), expert([1.0, 0.1], [1.0, 0.0])?),
//!     ("poem".to_owned(), expert([0.0, 1.0], [0.1, 1.0])?),
//!     ("subtract".to_owned(), expert([1.0, 0.0], [1.0, 0.1])?),
//! ])?;
//! let partition = mbc(&experts, &MbcOptions { k: 2, ..MbcOptions::default() })?;
//! assert_eq!(partition.labels(), [0, 1, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adjusted_rand;
mod cluster_count;
mod clustering_report;
mod clusters;
mod clusters_file;
mod comparison_space;
mod embedding_clusters;
mod error;
mod expert_set;
mod gram;
mod kmeans;
mod leading_eigenpairs;
mod mbc;
mod partition;
mod point_blocks;
mod random_clusters;
mod silhouette;
mod similarity;
mod space_similarities;
mod spectral_embedding;
#[cfg(test)]
mod synthetic;

pub use adjusted_rand::adjusted_rand;
pub use cluster_count::{CurvePoint, SuggestedK, silhouette_curve, suggest_k};
pub use clustering_report::{ClusterMember, ClusterReport, ClusteringReport, SpaceReport};
pub use clusters::{Cluster, ClusterMethod, Clusters};
pub use clusters_file::published::read_published;
pub use comparison_space::ComparisonSpace;
pub use embedding_clusters::embedding_clusters;
pub use error::{BoxError, ClusterError, Result};
pub use expert_set::ExpertSet;
pub use gram::gram_matrix::GramMatrix;
pub use mbc::{KMeansInput, MbcEmbedding, MbcOptions, mbc};
pub use partition::Partition;
pub use random_clusters::random_clusters;
pub use silhouette::silhouettes;
pub use similarity::Similarity;
pub use space_similarities::{SpaceSimilarities, UnavailableSpace};
