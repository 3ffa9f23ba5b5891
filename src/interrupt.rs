//! Ctrl-C, SIGTERM and SIGUSR1: they end the process at once, with a message, unless a command handles the first one itself.

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

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
    /// Resume hint printed when a signal ends the process.
    resume_hint: Arc<OnceLock<String>>,
}

/// While this is alive, the first signal only sets the flag; the second ends the process.
pub struct HeldInterrupt<'a>(&'a Interrupt);

impl Interrupt {
    /// Installs the signal handlers. Files are written under temporary names, so exiting at once leaves none incomplete.
    pub fn install() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(true));
        let resume_hint = Arc::new(OnceLock::new());
        for &signal in STOPPING {
            // In this order: whether the process ends depends on the flag before this signal.
            end_message::register(signal, &stop, &resume_hint)
                .and_then(|()| signal_hook::flag::register_conditional_shutdown(signal, EXIT_CODE.into(), stop.clone()))
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
                .context("cannot install the signal handlers")?;
        }
        handle_file_size_limit()?;
        Ok(Self { ends: stop, asked: AtomicBool::new(false), resume_hint })
    }

    /// Sets the resume hint: what is kept, and how to go on. Only the first such text counts.
    pub fn set_resume_hint(&self, text: impl FnOnce() -> String) {
        self.resume_hint.get_or_init(text);
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

/// The message of a process that a signal ends at once.
#[cfg(unix)]
mod end_message {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{IsTerminal as _, stderr};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};

    /// Prints the message at a signal that ends the process: to be registered before what ends it.
    pub fn register(signal: i32, ends: &Arc<AtomicBool>, resume_hint: &Arc<OnceLock<String>>) -> std::io::Result<()> {
        let (ends, resume_hint) = (ends.clone(), resume_hint.clone());
        // On a terminal the cursor is behind `^C`, a progress bar or generated text.
        let start = if stderr().is_terminal() { "\n" } else { "" };
        let print = move || {
            if !ends.load(Ordering::Relaxed) {
                return;
            }
            write(start);
            write("interrupted");
            if let Some(text) = resume_hint.get() {
                write(": ");
                write(text);
            }
            write("\n");
        };
        // SAFETY: the handler loads atomics and calls poll(2) and write(2), which are allowed in signal handlers; it takes
        // no lock and allocates nothing.
        unsafe { signal_hook::low_level::register(signal, print) }.map(|_| ())
    }

    /// Writes past the lock of stderr, which the interrupted thread may hold. Where stderr is a pipe that nobody reads, what
    /// it has no room for is left out: the write would wait for ever.
    fn write(text: &str) {
        const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let stderr = stderr();
        // A pipe that is ready has room for this many bytes at least (`_POSIX_PIPE_BUF`).
        for part in text.as_bytes().chunks(512) {
            if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&NO_WAIT)) == Ok(0) {
                return;
            }
            // There is nowhere to report an error.
            let _ = rustix::io::write(&stderr, part);
        }
    }
}

/// Elsewhere a signal ends the process without a message.
#[cfg(not(unix))]
mod end_message {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, OnceLock};

    pub fn register(_: i32, _: &Arc<AtomicBool>, _: &Arc<OnceLock<String>>) -> std::io::Result<()> {
        Ok(())
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
        let (ends, resume_hint) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let interrupt = Interrupt { ends, asked: AtomicBool::new(false), resume_hint };
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
