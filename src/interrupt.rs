//! Ctrl-C, and what else asks a process to end: it ends at once, unless a command has asked to be told first.

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of an interrupted process.
pub const EXIT_CODE: u8 = 130;

/// Who hears of Ctrl-C.
pub struct Interrupt {
    /// Whether the next Ctrl-C ends the process. Every Ctrl-C sets it, so the second always does; a command that can
    /// stop by itself clears it, and reads it as the wish to stop.
    ends: Arc<AtomicBool>,
    /// Whether there was a Ctrl-C that nobody has heeded yet: what comes next stops at once.
    asked: AtomicBool,
}

/// For as long as this lives, the first Ctrl-C only sets the flag; the second ends the process.
pub struct HeldInterrupt<'a>(&'a Interrupt);

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
        Ok(Self { ends: stop, asked: AtomicBool::new(false) })
    }

    /// From here on the first Ctrl-C only sets the flag, which the caller looks at. It is set already where one came too
    /// late for whoever held it before.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_late_for_one_stage_stops_the_next() {
        let interrupt = Interrupt { ends: Arc::new(AtomicBool::new(true)), asked: AtomicBool::new(false) };
        let first = interrupt.hold();
        assert!(!first.load(Ordering::Relaxed));
        drop(first);
        assert!(interrupt.ends.load(Ordering::Relaxed), "between stages Ctrl-C ends the process");
        let second = interrupt.hold();
        assert!(!second.load(Ordering::Relaxed));
        second.store(true, Ordering::Relaxed);
        drop(second);
        assert!(interrupt.hold().load(Ordering::Relaxed));
    }
}
