//! Merges combine several adapters, with weights, into one.
//!
//! A merge is a pure function in weight space, module by module; it needs neither a base nor data. How much a result
//! retains of the untruncated merge is in the report of [`Merged`]. [`MERGES`] lists the merges, [`FITTED_MERGES`]
//! those whose weights are fitted to rows of a task.
//!
//! Task arithmetic, TIES, DARE, magnitude pruning and breadcrumbs are rows of one table, `task_vector_table`, carried out by
//! `task_vectors`: `value_mask` drops values, `consensus` elects signs and sums. Every other merge has a file of its own.
//! [`CALIBRATIONS`] lists what can be done to the experts before any merge.
//!
//! ```
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//! use lorakit_route::Expert;
//! use lorakit_route::merge::{Coefficients, parse_merge};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let module = "model.layers.0.self_attn.q_proj";
//! let expert = |name: &str, a: [f32; 2], b: [f32; 2]| -> Result<Expert, Box<dyn std::error::Error>> {
//!     let update = LowRank::new(Matrix::new(1, 2, a.to_vec())?, Matrix::new(2, 1, b.to_vec())?, 2.0)?;
//!     Ok(Expert::new(name, Adapter::new([(module.to_string(), update)].into())))
//! };
//! let experts = [expert("first", [1., 0.], [1., 0.])?, expert("second", [0., 1.], [0., 3.])?];
//!
//! let sum = parse_merge("cat")?;
//! let merged = sum.merge(&experts, &Coefficients::new(vec![0.5, 1.0]))?;
//! assert_eq!(merged.adapter.modules()[module].delta(), [1., 0., 0., 6.]);
//!
//! // Rank 1 keeps only the larger direction: 36 of 37 parts of the squared norm.
//! let short = parse_merge("svd:rank=1")?;
//! let merged = short.merge(&experts, &Coefficients::new(vec![0.5, 1.0]))?;
//! assert!((merged.report[0].retained - 36. / 37.).abs() < 1e-12);
//! # Ok(())
//! # }
//! ```

mod add_to_weight;
mod calibration;
pub(crate) mod coefficients;
mod compress;
pub(crate) mod concatenation;
mod consensus;
mod core_space;
mod ctm;
pub(crate) mod fitted_merge;
mod fitted_merge_list;
mod inner_merge;
mod iso_c;
mod iso_cts;
mod knots;
mod lego;
mod low_rank_product;
mod merge_list;
pub(crate) mod merge_method;
mod merge_report;
mod module;
mod rank;
mod robust;
mod row_source;
mod shared_basis;
mod singular_triples;
mod svd;
mod task_vector_table;
pub(crate) mod task_vectors;
mod tsv;
mod tucker;
mod unit_clusters;
mod value_mask;
mod wudi;

pub use add_to_weight::{Orientation, add_to_weight};
pub use calibration::{CALIBRATIONS, PicoCalibration, parse_calibration};
pub use coefficients::Coefficients;
pub use compress::compress;
pub use concatenation::Concatenation;
pub use consensus::SignElection;
pub use core_space::CoreSpace;
pub use ctm::CompressThenMerge;
pub use fitted_merge::FittedMerge;
pub use fitted_merge_list::{FITTED_MERGES, parse_fitted_merge};
pub use iso_c::IsoC;
pub use iso_cts::IsoCts;
pub use knots::Knots;
pub use lego::Lego;
pub use merge_list::{MERGES, parse_merge};
pub use merge_method::MergeMethod;
pub use merge_report::{Merged, ModuleReport};
pub use rank::Rank;
pub use robust::RobustMerge;
pub use shared_basis::Basis;
pub use svd::Svd;
pub use task_vector_table::Convention;
pub use task_vectors::{TaskVectorSettings, TaskVectors};
pub use tsv::{KeptDirections, Tsv};
pub use tucker::TuckerStop;
pub use wudi::Wudi;
