//! Prompts from the command line or a file, and the texts generated for them.

pub mod cache_memory;
pub mod generated_rows;
pub mod prompt_row;
