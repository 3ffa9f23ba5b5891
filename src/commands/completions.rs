//! `completions`: a script that completes lorakit's command line in a shell.

use crate::cli::Cli;
use crate::context::Context;
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

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
    let script = String::from_utf8(script)?;
    if !context.output.json {
        // A script ends where it ends: the line that a result closes with is its own.
        return context.output.raw(&script);
    }
    context.output.result(&json!({ "shell": args.shell.to_string(), "script": script }), String::new)
}
