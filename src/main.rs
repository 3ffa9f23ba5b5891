//! `lorakit`, the command line: flags, files and printing over the crates that do the work.
//!
//! One file per subcommand, in [`commands`], holds its arguments and its action.

mod args;
mod base;
mod cli;
mod command_context;
mod commands;
mod demo;
mod interrupt;
mod output;
mod pages;
mod routing_trace;
mod scoring;

use cli::Cli;
use command_context::Context;
use std::process::ExitCode;

/// Tensors come and go with every op: an allocator that keeps their pages saves the kernel from clearing them anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::read();
    set_threads(cli.global.threads);
    let context = match Context::new(&cli.global) {
        Ok(context) => context,
        Err(error) => return output::console::failure(&error),
    };
    match cli.command.run(&context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::console::failure(&error),
    }
}

/// Fixes the size of the thread pools. They read these variables when they are first used, and never again.
///
/// candle's own pool gets one thread: it waits by spinning, which costs more than it gives beside the ops of ours that
/// share rayon's pool (training with two spinning threads took 2.4 times as long on a busy machine).
fn set_threads(threads: Option<std::num::NonZeroUsize>) {
    // SAFETY: nothing before this starts a thread, so nobody can be reading the environment.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        if let Some(threads) = threads {
            std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        }
    }
}
