//! From what a user types after `--tasks` to tasks: specs, folders, task TOMLs.

pub(crate) mod dataset_folder;
pub(crate) mod most_common_format;
pub(crate) mod rows_by_column;
pub(crate) mod split_files;
pub(crate) mod suite;
pub(crate) mod task_builder;
pub(crate) mod task_config;
pub(crate) mod task_files;
pub(crate) mod task_loader;
