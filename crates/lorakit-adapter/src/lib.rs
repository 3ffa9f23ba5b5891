//! Low-rank adapters: PEFT folders, libraries, exact low-rank algebra, without tensors.
//!
//! A LoRA adds `s B A` to some linear modules of a base model. [`LowRank`] is the update of one module, with its products, norms and top direction
//! computed exactly from r x r problems; [`Adapter`] holds one per module, and is read from and written to
//! the folders of Hugging Face PEFT, each key of the configuration ([`PeftConfig`]) and each tensor
//! accounted for or refused by name. [`Library`] is a folder of adapters with a record of each.
//!
//! What is absent on purpose: there is no tokenizer and no model here, no router, merge or trainer. A base
//! is known only as a list of module paths with their widths ([`BaseModule`]). Nothing is printed: what was
//! read leniently is returned as [`Notice`]s.
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
//! // The input direction that the update stretches most, and by how much.
//! let update = &one.modules()["model.layers.0.self_attn.q_proj"];
//! let top = update.top_direction().expect("the update is not zero");
//! assert!((top.singular_value - 10.0).abs() < 1e-12);
//! assert_eq!(top.vector, [0.6, 0.8]);
//!
//! // A folder that PEFT loads, and back.
//! let temporary = tempfile::tempdir()?;
//! let folder = temporary.path().join("one");
//! one.write(&folder)?;
//! assert_eq!(Adapter::read(&folder)?.modules(), one.modules());
//! # Ok(())
//! # }
//! ```

mod adapter;
mod additions;
mod assembly;
mod expert;
mod import;
mod judge;
mod library;
mod lock;
mod low_rank;
mod matrix;
mod models;
mod mttl;
mod naming;
mod nearest;
mod notice;
mod pattern;
mod peft_config;
mod peft_folder;
mod peft_json;
mod pickle;
mod pickle_machine;
mod routers;
mod several;
mod siblings;
mod target;
mod tensor_key;
mod torch_file;
mod weights_file;

pub use adapter::{Adapter, BaseModule};
pub use expert::{BaseIdentity, ExpertRecord, TaskRecord, ensure_expert_name};
pub use judge::{Refusal, Refused};
pub use library::{Library, write_expert};
pub use lock::LibraryLock;
pub use low_rank::{Direction, LowRank};
pub use matrix::Matrix;
pub use models::{MODEL_RECORD_FILE, MODEL_WEIGHTS_FILE};
pub use mttl::{MttlExpert, mttl_experts};
pub use notice::Notice;
pub use pattern::Pattern;
pub use peft_config::{Facts, PeftConfig, TaskType};
pub use peft_folder::{CONFIG_FILE, WEIGHTS_FILE};
pub use routers::{ExpertWeights, RouterRecord};
pub use target::{Names, Targets};
