//! `library`: the experts of a library.

use super::{library_add, library_check, library_export, library_import, library_ls, library_show};
use crate::context::Context;
use anyhow::Result;
use clap::{Args, Subcommand};
use lorakit_adapter::Library;
use lorakit_fit::lock;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What can be done with a library.
#[derive(Debug, Subcommand)]
pub enum LibraryCommand {
    /// List the experts
    Ls(library_ls::LsArgs),
    /// Show all that is known of experts
    Show(NamesArgs),
    /// Remove experts. What routers learned from them stays under routers/, where nothing finds it any more: it is kept
    /// under a hash of the experts that it came from
    Rm(NamesArgs),
    /// Check every expert's files, or one adapter_config.json alone
    Check(library_check::CheckArgs),
    /// Add PEFT adapter folders; the library is made where there is none
    Add(library_add::AddArgs),
    /// Add adapters of other programs: PEFT folders with .bin weights, and libraries of mttl
    Import(library_import::ImportArgs),
    /// Write experts as Hugging Face repositories, one folder each, with a model card
    Export(library_export::ExportArgs),
}

/// Experts of a library by name.
#[derive(Args, Debug)]
pub struct NamesArgs {
    /// The library
    #[arg(long, value_name = "L")]
    pub library: PathBuf,
    /// Experts
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Runs a command about a library.
pub fn run(command: LibraryCommand, context: &Context) -> Result<()> {
    match command {
        LibraryCommand::Ls(args) => library_ls::run(&args, context),
        LibraryCommand::Show(args) => library_show::run(&args, context),
        LibraryCommand::Rm(args) => rm(&args, context),
        LibraryCommand::Check(args) => library_check::run(&args, context),
        LibraryCommand::Add(args) => library_add::run(&args, context),
        LibraryCommand::Import(args) => library_import::run(&args, context),
        LibraryCommand::Export(args) => library_export::run(&args, context),
    }
}

fn rm(args: &NamesArgs, context: &Context) -> Result<()> {
    let library = Library::open(&args.library)?;
    let _lock = lock(&library, context)?;
    // A name that is not there is found before anything is removed.
    args.names.iter().try_for_each(|name| library.expert_folder(name).map(|_| ()))?;
    args.names.iter().collect::<BTreeSet<_>>().into_iter().try_for_each(|name| library.remove(name))?;
    context.output.result(&json!({ "removed": args.names }), || format!("removed: {}", args.names.join(", ")))
}
