//! Runs the binary as a user does.
#![allow(dead_code, reason = "every test file uses a part of this")]

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A finished run.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it told on the side.
    pub stderr: String,
}

/// `lorakit` with `arguments`, not started yet.
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorakit"));
    command.args(arguments);
    command
}

/// Runs `lorakit` with `arguments`.
pub fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ran {
    command(arguments).output().unwrap().into()
}

impl From<Output> for Ran {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        Self {
            code: status.code().unwrap_or_else(|| panic!("ended by {status}")),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }
}

/// Runs `lorakit` with arguments that stand in one text, separated by white space.
pub fn words(text: &str) -> Ran {
    run(text.split_whitespace())
}

impl Ran {
    /// The run, which must have succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Its one JSON document.
    pub fn json(self) -> Value {
        let ran = self.ok();
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    /// Its message, of a run that must have ended with `code`.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "", "a failure prints no result");
        self.stderr
    }
}

/// A path of the shared material; None, with a notice, where it is absent.
#[allow(clippy::print_stderr)]
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if !found.exists() {
        eprintln!("skipped: no ../shared");
        return None;
    }
    Some(found)
}

/// Asserts that a message says all of these.
pub fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}
