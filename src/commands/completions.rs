//! `completions`: prints a shell completion script.

use crate::command_context::CommandContext;
use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;
use serde_json::json;

/// The arguments of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// Shell
    shell: Shell,
}

/// Prints the script that completes `command_line`.
pub fn run(args: CompletionsArgs, mut command_line: Command, context: &CommandContext) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command_line, "lorakit", &mut script);
    let script = String::from_utf8(script)?;
    if !context.output.json {
        // Printed without a final newline of our own.
        return context.output.raw(&script);
    }
    context.output.result(&json!({ "shell": args.shell.to_string(), "script": script }), String::new)
}
