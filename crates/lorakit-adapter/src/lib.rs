//! Low-rank adapters in weight space, the files of Hugging Face PEFT, and libraries of adapters on disk.
//!
//! A LoRA adds `s B A` to some linear modules of a base model.
//!
//! - [`LowRank`] is the update of one module; inner products, norms and singular vectors are exact, from r x r problems.
//! - [`Adapter`] holds an update per module. It is read from and written to PEFT's folders; every key of the configuration
//!   ([`PeftConfig`]) and every tensor is accounted for or refused by name.
//! - [`Library`] is a folder of adapters ("experts"), each with an [`ExpertRecord`] of how it was made.
//!
//! Deliberately absent: tensor libraries, tokenizers, models, routers, merges and trainers. A base is known only as a list
//! of module paths with their dimensions ([`BaseModule`]). Nothing is printed: warnings are returned as [`Warning`]s, and
//! every error is an [`AdapterError`].
//!
//! ```
//! # fn main() -> anyhow::Result<()> {
//! use std::collections::BTreeMap;
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//!
//! // Two adapters of one module with two inputs and three outputs: rank 1, scale 2.
//! let adapter = |b: [f32; 3]| -> anyhow::Result<Adapter> {
//!     let a = Matrix::new(1, 2, vec![3.0, 4.0])?;
//!     let update = LowRank::new(a, Matrix::new(3, 1, b.to_vec())?, 2.0)?;
//!     Ok(Adapter::new(BTreeMap::from([("model.layers.0.self_attn.q_proj".to_owned(), update)])))
//! };
//! let (one, other) = (adapter([1.0, 0.0, 0.0])?, adapter([1.0, 1.0, 0.0])?);
//! assert!((one.cosine(&other)? - 0.5f64.sqrt()).abs() < 1e-12);
//!
//! // The input direction that the update amplifies most, and by how much.
//! let update = &one.modules()["model.layers.0.self_attn.q_proj"];
//! let top = update.top_singular_vector().expect("the update is not zero");
//! assert!((top.singular_value - 10.0).abs() < 1e-12);
//! assert_eq!(top.vector, [0.6, 0.8]);
//!
//! // Write a folder that PEFT loads, and read it again.
//! let temporary = tempfile::tempdir()?;
//! let folder = temporary.path().join("one");
//! one.write(&folder)?;
//! assert_eq!(Adapter::read(&folder)?.modules(), one.modules());
//! # Ok(())
//! # }
//! ```

mod adapter;
mod base_module;
mod error;
mod export;
mod factor_gram;
mod fused_modules;
mod gguf_names;
mod image_encoder;
mod import;
mod library;
mod low_rank;
mod matrix;
mod name_list;
mod one_rank;
mod peft;
mod shared_a;
mod singular_vector;
mod text_model_paths;
mod warning;

pub use adapter::Adapter;
pub use base_module::{BaseModule, ModuleKind};
pub use error::AdapterError;
pub use export::gguf_adapter::GgufExport;
pub use export::hub::HubExport;
pub use gguf_names::llama_cpp_row_order;
pub use image_encoder::IMAGE_MODULES;
pub use import::dense_adapter::DenseAdapter;
pub use import::mttl_library::{MttlExpert, mttl_experts};
pub use import::token_rows::TokenRows;
pub use library::base_identity::BaseIdentity;
pub use library::expert_name::ensure_expert_name;
pub use library::expert_record::{ExpertRecord, TaskRecord};
pub use library::library_layout::EXPERT_RECORD_FILE;
pub use library::library_lock::{KeepWaiting, LibraryLock};
pub use library::library_models::{MODEL_RECORD_FILE, MODEL_WEIGHTS_FILE};
pub use library::library_routers::{ExpertHash, RouterRecord};
pub use library::library_store::{Library, write_expert};
pub use library::opaque_record::OpaqueRecord;
pub use low_rank::LowRank;
pub use matrix::Matrix;
pub use peft::adapter_files::{CONFIG_FILE, WEIGHTS_FILE};
pub use peft::path_pattern::PathPattern;
pub use peft::peft_config::{AdapterMetadata, PeftConfig, TaskType};
pub use peft::refused_features::refused_features;
pub use peft::target_modules::{ModuleSelector, Targets};
pub use peft::unsupported::{UnsupportedConfig, UnsupportedKey};
pub use peft::wrapper_prefix::wrapper_prefix;
pub use shared_a::SharedA;
pub use singular_vector::{RightSingularVectors, SingularVector};
pub use text_model_paths::path_in_text_model;
pub use warning::Warning;
