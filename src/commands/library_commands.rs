//! `library`: manages the experts of a library.

use super::{library_add, library_check, library_export, library_import, library_ls, library_show};
use crate::args::expert_names::ExpertNames;
use crate::command_context::CommandContext;
use anyhow::Result;
use clap::Subcommand;
use lorakit_adapter::Library;
use lorakit_fit::lock;
use serde_json::json;
use std::collections::BTreeSet;

/// The subcommands of `library`.
#[derive(Debug, Subcommand)]
pub enum LibraryCommand {
    /// List experts
    Ls(library_ls::LibraryLsArgs),
    /// Show details of experts
    Show(ExpertNames),
    /// Remove experts. Router caches that were fitted to them remain in routers/, unused
    Rm(ExpertNames),
    /// Check all files, or a single adapter_config.json
    Check(library_check::CheckArgs),
    /// Add PEFT or GGUF adapters, from folders or the Hub; creates the library if needed
    Add(library_add::AddArgs),
    /// Import adapters of other programs: PEFT folders with .bin weights, and mttl libraries
    Import(library_import::ImportArgs),
    /// Export experts: as Hugging Face repositories with a model card, or as GGUF adapters for llama.cpp
    Export(library_export::ExportArgs),
}

/// Runs a subcommand of `library`.
pub fn run(command: LibraryCommand, context: &CommandContext) -> Result<()> {
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

fn rm(args: &ExpertNames, context: &CommandContext) -> Result<()> {
    let library = Library::open(&args.library)?;
    let library = library.guarded_by(&[&lock(&library, context)?]);
    // A missing name is reported before anything is removed.
    args.names.iter().try_for_each(|name| library.expert_folder(name).map(|_| ()))?;
    args.names.iter().collect::<BTreeSet<_>>().into_iter().try_for_each(|name| library.remove(name))?;
    context.output.result(&json!({ "removed": args.names }), || format!("removed: {}", args.names.join(", ")))
}
