//! Everything that needs both a router and a trainer.
//!
//! [`router::build_router`] turns a router over an [`OpenLibrary`] into patches. What a learned router needs is fitted to
//! rows ([`router::ROUTER_FITS`]) and cached in the library. [`fitted_merge::fit_weights`] fits the weights of a merge,
//! [`adapt::AdaptPlan`] brings a library to a target task, [`training::TrainContext`] trains experts into a library, and
//! [`cluster::two_stage_mbc`] trains an expert per task, clusters these, and trains an expert per cluster. [`ResponseRatio`]
//! measures how much more strongly experts respond to their own tasks than others do.
//!
//! Deliberately absent: printing, progress bars, signals and flags. A [`Reporter`] takes status lines, warnings and the
//! events of training, and says when to stop; base, tokenizer, tasks and seed are arguments.
//!
//! Methods are found by name, with their settings and defaults:
//!
//! ```
//! use lorakit_fit::adapt::{ADAPT_METHODS, parse_adapt_method};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let method = parse_adapt_method("cat:steps=50")?;
//! assert_eq!(method.to_string(), "cat:per=layer,simplex=false,rows=100,steps=50,learning_rate=0.05");
//! assert!(method.info().needs_library);
//! assert_eq!(ADAPT_METHODS[0].usage(), "no_library");
//! # Ok(())
//! # }
//! ```
//!
//! A learned router over a library, fitted on first use:
//!
//! ```no_run
//! use lorakit_fit::router::build_router;
//! use lorakit_fit::{FitContext, OpenLibrary, Silent};
//! use lorakit_model::Base;
//! use lorakit_route::parse_router;
//! use lorakit_task::{TaskLoader, Tokenizer};
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = Path::new("models/phi-2");
//! let base = Base::open(folder, &Default::default())?;
//! let library = OpenLibrary::open(Path::new("library"), &base, &[])?;
//! let tokenizer = || Ok(Tokenizer::open(folder)?);
//! let load_tasks = |spec: &str, columns| Ok(TaskLoader { columns, ..TaskLoader::default() }.load(&[spec.to_owned()])?);
//! let context = FitContext {
//!     base: &base,
//!     library: &library,
//!     tokenizer: &tokenizer,
//!     tasks: &[],
//!     load_tasks: &load_tasks,
//!     seed: 0,
//!     reporter: &Silent,
//! };
//! let routed = build_router(&context, &*parse_router("phatgoose:steps=50")?, None, None)?;
//! # drop(routed);
//! # Ok(())
//! # }
//! ```

pub mod adapt;
pub mod cluster;
pub mod conversion;
mod error;
mod fit_context;
pub mod fitted_merge;
mod initial_seeds;
mod merge_record;
mod open_library;
mod pluralize;
mod record_file;
mod reporter;
mod response_ratio;
pub mod router;
mod task_record;
mod trained_encoding;
pub mod training;
mod wait_for_lock;

pub use error::{ChangedTask, FitError, Result};
pub use fit_context::{FitContext, LoadTasks};
pub use initial_seeds::{differing_initial_seeds, warn_of_separate_mixing};
pub use merge_record::{
    FitRecord, MERGE_RECORD_FILE, MergeRecord, MergedBaseRecord, MergedExpert, read_merge_record,
    read_merged_base_record, record_of_model,
};
pub use open_library::{OpenLibrary, ensure_same_base, open_adapter, recorded_tasks, with_tied_head};
pub use pluralize::pluralize;
pub use record_file::record_beside;
pub use reporter::{Reporter, Silent, TrainingHooks};
pub use response_ratio::{RESPONSE_RATIO, ResponseRatio};
pub use task_record::{chat_template_of, encoded_task_record};
pub use trained_encoding::trained_encoding;
pub use wait_for_lock::{lock, lock_for};
