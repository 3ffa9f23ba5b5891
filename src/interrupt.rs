//! Ctrl-C, SIGTERM and SIGUSR1: they end the process at once, unless a command handles the first one itself.

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of an interrupted process.
pub const EXIT_CODE: u8 = 130;

/// The signals that stop a command. Job schedulers send SIGTERM before SIGKILL; Slurm sends SIGUSR1 some time before a
/// job's limit, if it is asked to.
const STOPPING: &[i32] = &[
    SIGINT,
    SIGTERM,
    #[cfg(unix)]
    signal_hook::consts::SIGUSR1,
];

/// The state of interruption.
pub struct Interrupt {
    /// Whether the next signal ends the process. Every signal sets it, so the second always does; a command that can stop
    /// by itself clears it and polls it.
    ends: Arc<AtomicBool>,
    /// Whether a signal came too late for its command: the next one stops at once.
    asked: AtomicBool,
}

/// While this is alive, the first signal only sets the flag; the second ends the process.
pub struct HeldInterrupt<'a>(&'a Interrupt);

impl Interrupt {
    /// Installs the signal handlers. Files are written under temporary names, so exiting at once leaves none incomplete.
    pub fn install() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(true));
        for &signal in STOPPING {
            // In this order: whether the process ends depends on the flag before this signal.
            signal_hook::flag::register_conditional_shutdown(signal, EXIT_CODE.into(), stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
                .context("cannot install the signal handlers")?;
        }
        handle_file_size_limit()?;
        Ok(Self { ends: stop, asked: AtomicBool::new(false) })
    }

    /// Makes the first signal only set the flag, which the caller polls. It is already set if a signal came too late for
    /// the previous holder.
    pub fn hold(&self) -> HeldInterrupt<'_> {
        self.ends.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
        HeldInterrupt(self)
    }
}

impl Deref for HeldInterrupt<'_> {
    type Target = AtomicBool;

    fn deref(&self) -> &AtomicBool {
        &self.0.ends
    }
}

impl Drop for HeldInterrupt<'_> {
    fn drop(&mut self) {
        if self.0.ends.swap(true, Ordering::Relaxed) {
            self.0.asked.store(true, Ordering::Relaxed);
        }
    }
}

/// Exceeding the file size limit (`ulimit -f`) kills a process silently; with a handler it is a failed write whose error
/// names the file.
fn handle_file_size_limit() -> Result<()> {
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .context("cannot handle SIGXFSZ")?;
    Ok(())
}

/// The error of an interrupted command; the message says how to continue.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_signal_stops_the_next_stage() {
        let interrupt = Interrupt { ends: Arc::new(AtomicBool::new(true)), asked: AtomicBool::new(false) };
        let first = interrupt.hold();
        assert!(!first.load(Ordering::Relaxed));
        drop(first);
        assert!(interrupt.ends.load(Ordering::Relaxed), "between stages a signal ends the process");
        let second = interrupt.hold();
        assert!(!second.load(Ordering::Relaxed));
        second.store(true, Ordering::Relaxed);
        drop(second);
        assert!(interrupt.hold().load(Ordering::Relaxed));
    }
}
