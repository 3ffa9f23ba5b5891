//! The command line as a whole: what stands before or after every subcommand, and the list of subcommands.

use crate::args::global_args::GlobalArgs;
use crate::commands::{
    adapt, base, cluster, completions, demo, eval, explain, generate, library, logits, merge, task, train_experts,
    verify,
};
use crate::context::Context;
use anyhow::Result;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
B, a base: a Hugging Face model folder, hub:ORG/NAME[@REV], or pico, which is inside the binary.
[NAME=]T, a task: a task TOML, a JSON, JSONL or gzipped file in a plain form, a folder of any of these, or suite:NAME.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, with everything finished so far kept.";

/// Trains, clusters, routes, merges and evaluates libraries of LoRA adapters.
#[derive(Debug, Parser)]
#[command(name = "lorakit", version, styles = STYLES, after_help = AFTER_HELP)]
pub struct Cli {
    /// What every subcommand takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The command line that the process was given; where it is wrong, the process ends with what clap says of it.
    pub fn read() -> Self {
        let mut line = with_negative_numbers(Self::command());
        let matches = line.get_matches_mut();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut line).exit())
    }
}

/// The same command line in which -1 is a value wherever one is expected: the option it is for then says what it
/// expects, where clap would have taken it for an option that there is not.
fn with_negative_numbers(line: ClapCommand) -> ClapCommand {
    let line = line.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    line.mut_subcommands(with_negative_numbers)
}

/// What lorakit does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole method on the base inside the binary, in two minutes
    Demo(demo::DemoArgs),
    /// Train experts into a library: one per task, per cluster, or one for all tasks; or all weights of the base
    TrainExperts(Box<train_experts::TrainExpertsArgs>),
    /// Cluster the experts of a library, or tasks, to train an expert per cluster
    Cluster(cluster::ClusterArgs),
    /// Score routers over a library on tasks
    Eval(eval::EvalArgs),
    /// From a library to target tasks: fine-tune from its mean, or weigh its experts by a few rows
    Adapt(Box<adapt::AdaptArgs>),
    /// Make one adapter of several experts, or add them to the base
    Merge(merge::MergeArgs),
    /// Compare what a merge computes with what the experts compute in their slots
    Verify(verify::VerifyArgs),
    /// Write text after a prompt
    Generate(generate::GenerateArgs),
    /// Show which expert a router gives which token, in which layer
    Explain(explain::ExplainArgs),
    /// Write the logits of given tokens
    Logits(logits::LogitsArgs),
    /// Look into a library, and add, remove or check experts
    #[command(subcommand)]
    Library(library::LibraryCommand),
    /// Look at tasks and their rows
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Look at a base
    #[command(subcommand)]
    Base(base::BaseCommand),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

impl Command {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Demo(args) => demo::run(args, context),
            Self::TrainExperts(args) => train_experts::run(*args, context),
            Self::Cluster(args) => cluster::run(args, context),
            Self::Adapt(args) => adapt::run(*args, context),
            Self::Eval(args) => eval::run(args, context),
            Self::Merge(args) => merge::run(args, context),
            Self::Verify(args) => verify::run(args, context),
            Self::Generate(args) => generate::run(args, context),
            Self::Explain(args) => explain::run(args, context),
            Self::Logits(args) => logits::run(args, context),
            Self::Library(command) => library::run(command, context),
            Self::Task(command) => task::run(command, context),
            Self::Base(command) => base::run(command, context),
            Self::Completions(args) => completions::run(args, context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        with_negative_numbers(Cli::command()).debug_assert();
    }
}
