//! `man`: prints the manual page, or writes those of all subcommands.

use crate::command_context::CommandContext;
use anyhow::{Context as _, Result};
use clap::{Args, Command};
use clap_mangen::Man;
use serde_json::json;
use std::path::PathBuf;

/// The arguments of `man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Write lorakit.1, lorakit-eval.1 and so on into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints or writes the pages of `command_line`, in roff.
pub fn run(args: ManArgs, command_line: Command, context: &CommandContext) -> Result<()> {
    let Some(folder) = args.out else {
        let page = page(command_line)?;
        if !context.output.json {
            return context.output.raw(&page);
        }
        return context.output.result(&json!({ "page": page }), String::new);
    };
    let failed = || format!("{}: the pages cannot be written", folder.display());
    std::fs::create_dir_all(&folder).with_context(failed)?;
    clap_mangen::generate_to(command_line.disable_help_subcommand(true), &folder).with_context(failed)?;
    context.output.result(&json!({ "out": folder }), || {
        format!("read the pages in {0} with man -l {0}/lorakit.1", folder.display())
    })
}

/// The manual page of a command.
fn page(command: Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command.disable_help_subcommand(true)).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}
