//! The command line: global options and the list of subcommands.

use crate::args::global_args::GlobalArgs;
use crate::command_context::CommandContext;
use crate::commands::{
    adapt, base_commands, cluster, compare, completions, demo, eval, explain, generate, library_commands, logits, man,
    merge, task_commands, train_experts, verify,
};
use anyhow::Result;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::{self, ErrorKind, Write};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
B, a base model: a Hugging Face model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico, which is in the binary.
[NAME=]T, a task: a task TOML file, a JSON, JSONL, CSV, TSV or Parquet file (may be gzipped), a folder that Hugging Face \
datasets saved, a folder of any of these, \
hub:datasets/ORG/NAME[@REV][:CONFIG], or suite:NAME.

Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted (finished work is kept).";

/// Train, cluster, route, merge and evaluate libraries of LoRA adapters
#[derive(Debug, Parser)]
#[command(name = "lorakit", version, styles = STYLES, after_help = AFTER_HELP)]
pub struct Cli {
    /// The global options.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses the arguments of the process. On a usage error, prints it and exits.
    pub fn read() -> Self {
        let mut line = with_negative_numbers(Self::command());
        let matches = line.try_get_matches_from_mut(std::env::args_os()).unwrap_or_else(|error| exit(&error));
        Self::from_arg_matches(&matches).unwrap_or_else(|error| exit(&error.format(&mut line)))
    }
}

/// Prints a usage error, or the help that was asked for, and exits: as clap does, but help that cannot be written is a
/// failure.
fn exit(error: &clap::Error) -> ! {
    if error.use_stderr() {
        error.exit();
    }
    let written = error.print().and_then(|()| io::stdout().flush());
    let code = match written {
        Err(failed) if failed.kind() != ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "error: cannot write to stdout: {failed}");
            1
        }
        _ => error.exit_code(),
    };
    std::process::exit(code)
}

/// Lets every option take negative numbers, so that the option's own parser reports a wrong one. By default clap reports
/// `-1` as an unknown option.
fn with_negative_numbers(line: ClapCommand) -> ClapCommand {
    let line = line.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    line.mut_subcommands(with_negative_numbers)
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the full pipeline on the bundled model, in about two minutes
    Demo(demo::DemoArgs),
    /// Train experts: one per task, per cluster, or for all tasks; or fine-tune all weights
    TrainExperts(Box<train_experts::TrainExpertsArgs>),
    /// Cluster the experts of a library, or tasks
    Cluster(cluster::ClusterArgs),
    /// Evaluate routers over a library on tasks
    Eval(eval::EvalArgs),
    /// Put the results of several evaluations into one table, with a verdict on each claim
    Compare(compare::CompareArgs),
    /// Adapt a library to target tasks: fine-tune from its mean, or fit weights of its experts
    Adapt(Box<adapt::AdaptArgs>),
    /// Merge experts into one adapter, or into the base
    Merge(merge::MergeArgs),
    /// Check merged weights against unmerged adapters
    Verify(verify::VerifyArgs),
    /// Generate text from a prompt
    Generate(generate::GenerateArgs),
    /// Show which experts a router chooses for each token
    Explain(explain::ExplainArgs),
    /// Compute the logits of given tokens
    Logits(logits::LogitsArgs),
    /// List, add, remove, check, import and export experts
    #[command(subcommand)]
    Library(library_commands::LibraryCommand),
    /// Inspect tasks and their rows
    #[command(subcommand)]
    Task(task_commands::TaskCommand),
    /// Inspect a base model
    #[command(subcommand)]
    Base(base_commands::BaseCommand),
    /// Print a shell completion script
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write one for every subcommand
    Man(man::ManArgs),
}

impl Command {
    /// Runs the command.
    pub fn run(self, context: &CommandContext) -> Result<()> {
        match self {
            Self::Demo(args) => demo::run(args, context),
            Self::TrainExperts(args) => train_experts::run(*args, context),
            Self::Cluster(args) => cluster::run(args, context),
            Self::Adapt(args) => adapt::run(*args, context),
            Self::Eval(args) => eval::run(args, context),
            Self::Compare(args) => compare::run(args, context),
            Self::Merge(args) => merge::run(args, context),
            Self::Verify(args) => verify::run(args, context),
            Self::Generate(args) => generate::run(args, context),
            Self::Explain(args) => explain::run(args, context),
            Self::Logits(args) => logits::run(args, context),
            Self::Library(command) => library_commands::run(command, context),
            Self::Task(command) => task_commands::run(command, context),
            Self::Base(command) => base_commands::run(command, context),
            Self::Completions(args) => completions::run(args, Cli::command(), context),
            Self::Man(args) => man::run(args, Cli::command(), context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_accepts_the_command_line() {
        with_negative_numbers(Cli::command()).debug_assert();
    }
}
