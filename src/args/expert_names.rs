//! Experts of a library by name, as `library show` and `library rm` take them.

use clap::Args;
use std::path::PathBuf;

/// Experts of a library by name.
#[derive(Args, Debug)]
pub struct ExpertNames {
    /// Library
    #[arg(long, value_name = "L")]
    pub library: PathBuf,
    /// Names of experts
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}
