//! Ctrl-C, and what else asks a process to end: it ends at once, unless a command has asked to be told first.

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of an interrupted process.
pub const EXIT_CODE: u8 = 130;

/// Whether the next Ctrl-C ends the process. Every Ctrl-C sets it, so the second always does; a command that can stop
/// by itself clears it, and reads it as the wish to stop.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes charge of Ctrl-C. All files are written under temporary names, so ending at once leaves none half done.
    pub fn install() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(true));
        // SIGTERM is what a queueing system sends before it kills.
        for signal in [SIGINT, SIGTERM] {
            // In this order: the process ends by what the signals before this one have set.
            signal_hook::flag::register_conditional_shutdown(signal, EXIT_CODE.into(), stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
                .context("Ctrl-C cannot be handled")?;
        }
        survive_full_files()?;
        Ok(Self(stop))
    }

    /// From here on the first Ctrl-C only sets the flag, which the caller looks at; the second ends the process.
    pub fn hold(&self) -> &AtomicBool {
        self.0.store(false, Ordering::Relaxed);
        &self.0
    }
}

/// A file grown beyond the limit that the shell sets (`ulimit -f`) kills a process without a word; caught, it is a
/// failed write like any other, whose error names the file.
fn survive_full_files() -> Result<()> {
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .context("SIGXFSZ cannot be handled")?;
    Ok(())
}

/// The error of a command that stopped because it was asked to; the message says how to go on.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}
