//! Results on stdout, as text or as one JSON document; messages and errors on stderr.

use crate::args::usage::{self, UsageError};
use crate::interrupt::{self, Interrupted};
use anyhow::{Context as _, Error, Result, bail};
use serde::Serialize;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// The reader of stdout closed it, as `head` does: no failure.
#[derive(Debug)]
struct StdoutClosed;

impl Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Prints results and messages.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether results are one JSON document.
    pub json: bool,
    /// Whether progress is suppressed.
    pub quiet: bool,
    /// Whether details are printed on stderr.
    pub verbose: bool,
}

impl Output {
    /// Prints a command's result: the document with `--json`, else the text.
    pub fn result(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(document)? } else { text() };
        self.raw(&format!("{}\n", text.trim_end_matches('\n')))
    }

    /// Writes to stdout and flushes, for text that is streamed.
    pub fn raw(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            written => written.context("cannot write to stdout"),
        }
    }

    /// Prints a warning on stderr.
    pub fn warn(&self, text: impl Display) {
        // Ignore stderr write errors.
        let _ = writeln!(io::stderr().lock(), "warning: {text}");
    }

    /// Prints a status message on stderr, unless progress is suppressed.
    pub fn status(&self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Prints a detail on stderr with `--verbose`.
    pub fn detail(&self, text: impl Display) {
        if self.verbose {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// Creates a folder with those above it, unless it exists.
pub fn make_folder(folder: &Path) -> Result<()> {
    if let Some(file) = folder.ancestors().find(|path| path.is_file()) {
        bail!("{}: is a file; expected a folder, or a path where one can be created", file.display());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be created", folder.display()))
}

/// Creates the parent folder of a path.
pub fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), make_folder)
}

/// Prints an error with its causes, and returns the exit code.
pub fn failure(error: &Error) -> ExitCode {
    if error.is::<StdoutClosed>() {
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    if let Some(Interrupted(message)) = error.downcast_ref() {
        let _ = writeln!(stderr, "interrupted: {message}");
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    let _ = writeln!(stderr, "error: {error:#}");
    let usage = error.is::<UsageError>() || error.chain().any(|cause| cause.is::<UsageError>());
    if usage { ExitCode::from(usage::EXIT_CODE) } else { ExitCode::FAILURE }
}
