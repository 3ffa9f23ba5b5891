//! The subcommands. Each file holds one command's arguments and its action.

mod adapt;
mod base;
pub mod cluster;
mod completions;
mod demo;
pub mod eval;
mod explain;
mod generate;
mod library;
mod library_add;
mod library_check;
mod library_export;
mod library_import;
mod library_ls;
mod library_show;
mod logits;
mod merge;
mod task;
pub mod train_experts;
mod verify;

use crate::context::Context;
use anyhow::Result;
use clap::Subcommand;

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
