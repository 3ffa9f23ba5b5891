//! `completions`: a script that completes lorakit's command line in a shell.

use crate::cli::Cli;
use crate::context::Context;
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// The arguments of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: CompletionsArgs, context: &Context) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lorakit", &mut script);
    context.output.raw(&String::from_utf8(script)?)
}
