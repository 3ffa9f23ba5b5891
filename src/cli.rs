//! The command line as a whole: what stands before or after every subcommand, and the list of subcommands.

use crate::commands::Command;
use crate::context::{DeviceChoice, Dtype};
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgAction, Args, Command as Line, CommandFactory, FromArgMatches, Parser};
use std::num::NonZeroUsize;

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
    pub global: Global,
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
fn with_negative_numbers(line: Line) -> Line {
    let line = line.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    line.mut_subcommands(with_negative_numbers)
}

/// Options that stand before or after the subcommand.
#[derive(Args, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Where to compute [default: CUDA where built in and present, else the CPU]
    #[arg(long, global = true, value_name = "cpu|cuda|cuda:N")]
    pub device: Option<DeviceChoice>,
    /// The type of the base's weights [default: f32 on the CPU, the file's on CUDA]
    #[arg(long, global = true, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Threads on the CPU [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// The seed of everything random
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Print results as one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress; results stay
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Take notices about adapters that are read for errors
    #[arg(long, global = true)]
    pub strict: bool,
    /// Say more on stderr
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Threads that a machine could have; far more would only bring it to a standstill.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    const MOST: usize = 1024;
    let number = text.parse::<NonZeroUsize>().ok().filter(|number| number.get() <= MOST);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        with_negative_numbers(Cli::command()).debug_assert();
    }
}
