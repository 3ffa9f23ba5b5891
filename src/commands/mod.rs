//! The subcommands: each file holds the arguments and the action of one.

pub mod adapt;
pub mod base_commands;
pub mod cluster;
pub mod compare;
pub mod completions;
pub mod demo;
pub mod eval;
pub mod explain;
pub mod generate;
pub mod library_add;
pub mod library_check;
pub mod library_commands;
pub mod library_export;
pub mod library_import;
pub mod library_ls;
pub mod library_show;
pub mod logits;
pub mod man;
pub mod merge;
pub mod task_commands;
pub mod task_split;
pub mod train_experts;
pub mod verify;
