//! What needs a router and a trainer: learned routers, fitted merges, adaptation, and MBC in two stages.

pub mod adapt;
pub mod cluster;
mod error;
mod fit_context;
pub mod fitted_merge;
mod library_lock;
mod merge_record;
mod open_library;
mod pluralize;
mod record_file;
mod reporter;
pub mod router;
mod task_record;
pub mod training;

pub use error::{BoxError, FitError, Result};
pub use fit_context::FitContext;
pub use library_lock::{lock, lock_for};
pub use merge_record::{
    FitRecord, MERGE_RECORD_FILE, MergeRecord, MergedBaseRecord, MergedExpert, read_merge_record,
    read_merged_base_record, record_of_model,
};
pub use open_library::{OpenLibrary, ensure_same_base, open_adapter};
pub use pluralize::pluralize;
pub use record_file::record_beside;
pub use reporter::{Reporter, Silent, TrainingHooks};
pub use task_record::task_record;
