//! What the user sees: results on stdout, as tables or as one JSON document; notices and errors on stderr.

use crate::args::usage::{self, UsageError};
use crate::interrupt::{self, Interrupted};
use anyhow::{Context as _, Error, Result};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// How results and notices reach the user.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether results are one JSON document.
    pub json: bool,
    /// Whether progress is left out.
    pub quiet: bool,
    /// Whether more is said on stderr.
    pub verbose: bool,
}

impl Output {
    /// Prints a command's result: the document under `--json`, else what `human` makes of it.
    pub fn result(&self, document: &impl Serialize, human: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(document)? } else { human() };
        self.raw(&format!("{}\n", text.trim_end_matches('\n')))
    }

    /// Writes to stdout as it stands, at once: for text that grows while the user reads it.
    pub fn raw(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Tells something that the user should know beside the result.
    pub fn warn(&self, text: impl Display) {
        // Nobody is told that telling failed.
        let _ = writeln!(io::stderr().lock(), "note: {text}");
    }

    /// Tells how things go, unless progress is unwanted.
    pub fn status(&self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Tells what only the curious want to know.
    pub fn detail(&self, text: impl Display) {
        if self.verbose {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// Makes the folder that a file or folder is to be written in, where there is none.
pub fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => {
            std::fs::create_dir_all(parent).with_context(|| format!("{}: cannot be made", parent.display()))
        }
        None => Ok(()),
    }
}

/// Reports why a command ended early, with all its causes, and how the process is to end.
pub fn failure(error: &Error) -> ExitCode {
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == ErrorKind::BrokenPipe) {
        // Whoever read our stdout has seen enough, as `head` has.
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    if let Some(Interrupted(message)) = error.downcast_ref() {
        let _ = writeln!(stderr, "interrupted: {message}");
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    let _ = writeln!(stderr, "error: {error:#}");
    if error.is::<UsageError>() { ExitCode::from(usage::EXIT_CODE) } else { ExitCode::FAILURE }
}
