//! The command line of lorakit: options, files, printing and HTML pages. The algorithms are in the library crates.
//!
//! - [`cli`]: the global options and the list of subcommands.
//! - [`commands`]: one file per subcommand, with its arguments and its action.
//! - [`args`]: options that several subcommands share; usage errors.
//! - [`base`]: from `--base` to an open model; the bundled model `pico`, and bases with an adapter merged in.
//! - [`adding`]: adapters that are to be added to a library, and checks of them.
//! - [`hub`]: downloads from the Hugging Face Hub into its cache.
//! - [`scoring`]: evaluation runs, with failures and results.json.
//! - [`generation`]: prompts of `generate`, and files of generated text.
//! - [`demo`]: the full pipeline that the `demo` subcommand runs.
//! - [`routing_trace`]: records a router's choices for `explain`.
//! - [`encoding_check`]: warns of rows that become tokens otherwise than those that experts were trained on.
//! - [`verification`]: how far merged weights and unmerged adapters are apart, for `verify`.
//! - [`output`]: results on stdout, messages and progress on stderr, text tables.
//! - [`paper_table`]: tables of several evaluations, with verdicts on claims, for `compare`.
//! - [`plots`]: plots of a table as SVG files, for `compare`.
//! - [`pages`]: HTML pages, rendered from templates.
//! - [`command_context`]: device, seed, output and interruption, which every subcommand receives.
//! - [`allocator`]: keeps freed memory for the next step.
//! - [`interrupt`]: Ctrl-C and SIGTERM.
//!
//! A subcommand parses into its arguments, checks them, opens base and library, calls a library crate, and prints one
//! result: a text, or with `--json` a document. To add one: a file in [`commands`], a variant in [`cli::Command`] and its
//! arm.

mod adding;
mod allocator;
mod args;
mod base;
mod cli;
mod command_context;
mod commands;
mod demo;
mod encoding_check;
mod generation;
mod hub;
mod interrupt;
mod output;
mod pages;
mod paper_table;
mod plots;
mod routing_trace;
mod scoring;
mod selected_experts;
mod verification;

use cli::Cli;
use command_context::CommandContext;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_pages();
    let cli = Cli::read();
    set_threads(cli.global.threads);
    let context = match CommandContext::new(&cli.global) {
        Ok(context) => context,
        Err(error) => return output::console::failure(&error),
    };
    match cli.command.run(&context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::console::failure(&error),
    }
}

/// Sets the sizes of the thread pools, which read these variables at first use.
///
/// candle's own pool gets one thread: its threads spin while waiting, at the expense of our ops on rayon's pool (training
/// with two spinning threads took 2.4 times as long on a busy machine).
fn set_threads(threads: Option<std::num::NonZeroUsize>) {
    // SAFETY: no other thread has been started, so none reads the environment.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        if let Some(threads) = threads {
            std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        }
    }
}
