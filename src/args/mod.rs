//! Options that several subcommands share, and errors of wrong usage.

pub mod adapter_args;
pub mod expert_names;
pub mod global_args;
pub mod part_arg;
pub mod router_arg;
pub mod row_encoding_args;
pub mod sampling_args;
pub mod task_args;
pub mod train_config_args;
pub mod usage;
