//! Bases: from `--base` to an open model, the bundled one, and bases with an adapter merged in.

pub mod adapter_folder;
pub mod base_source;
pub mod hub_files;
pub mod merged_base;
pub mod model_files;
pub mod pico;
pub mod resolved_base;
pub mod shared_embedding;
