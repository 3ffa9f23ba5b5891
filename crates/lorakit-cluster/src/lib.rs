//! Clusters of adapters by the similarity of their parameters (MBC) and their baselines.
//!
//! Experts whose parameters are alike were trained on tasks that are alike; a cluster of them is a set of tasks worth
//! training one expert on (arXiv 2405.11157). This crate compares adapters in three [`Space`]s, clusters them, reads
//! and writes clusters.json, and judges a clustering in a [`Report`]. It works on hundreds of adapters of millions of
//! values each without holding them all in memory, and gives the same result whatever the number of threads.
//!
//! It deliberately knows no model, no tokenizer and no router, never trains, and prints nothing. Tasks are names to
//! it, and embeddings of text are vectors that the caller brings.
//!
//! - [`Experts`]: names, and how to open an adapter.
//! - [`Gram`] and [`Similarity`]: inner products and cosines in one space.
//! - [`mbc()`], [`random()`], [`embedding()`]: three ways to a [`Partition`]; [`Embedded`] is MBC before the choice
//!   of k.
//! - [`Clusters`]: clusters.json; [`read_published`]: what others published.
//! - [`Report`], from [`Spaces`] and [`curve`].
//!
//! ```
//! use std::collections::BTreeMap;
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//! use lorakit_cluster::{Experts, MbcOptions, mbc};
//!
//! // Rank 1 on one module: what an expert does is the outer product of its B and its A.
//! let expert = |a: [f32; 2], b: [f32; 2]| -> Result<Adapter, Box<dyn std::error::Error>> {
//!     let update = LowRank::new(Matrix::new(1, 2, a.to_vec())?, Matrix::new(2, 1, b.to_vec())?, 2.0)?;
//!     Ok(Adapter::new(BTreeMap::from([("layers.0.q_proj".to_owned(), update)])))
//! };
//! let experts = Experts::in_memory([
//!     ("add".to_owned(), expert([1.0, 0.1], [1.0, 0.0])?),
//!     ("poem".to_owned(), expert([0.0, 1.0], [0.1, 1.0])?),
//!     ("subtract".to_owned(), expert([1.0, 0.0], [1.0, 0.1])?),
//! ])?;
//! let partition = mbc(&experts, &MbcOptions { k: 2, ..MbcOptions::default() })?;
//! assert_eq!(partition.labels(), [0, 1, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adjusted_rand;
mod clusters;
mod delta;
mod embedding;
mod error;
mod experts;
mod flat;
mod kmeans;
mod layout;
mod mbc;
mod mttl;
mod partition;
#[cfg(test)]
mod planted;
mod published;
mod random;
mod report;
mod silhouette;
mod similarity;
mod sparsify;
mod spectral;

pub use adjusted_rand::adjusted_rand;
pub use clusters::{Cluster, Clusters, Method};
pub use embedding::embedding;
pub use error::{Cause, Error, Result};
pub use experts::Experts;
pub use kmeans::kmeans;
pub use mbc::{Embedded, MbcOptions, On, mbc};
pub use partition::Partition;
pub use published::read_published;
pub use random::random;
pub use report::{
    ClusterReport, CurvePoint, Member, Report, SpaceReport, Spaces, Suggestion, Unavailable, curve, suggestion,
};
pub use silhouette::{mean_silhouette, silhouettes};
pub use similarity::{Gram, Similarity, Space};
pub use spectral::embed;
