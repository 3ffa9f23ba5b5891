//! Wrong usage: what is known to be wrong from the command line alone, which ends with 2 as clap's own errors do.

use anyhow::Error;
use std::fmt;
use std::num::NonZeroUsize;

/// The exit code of wrong usage.
pub const EXIT_CODE: u8 = 2;

/// The error of a command line that could not be carried out whatever the files hold.
#[derive(Debug)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The error with this message.
pub fn wrong(text: impl fmt::Display) -> Error {
    UsageError(text.to_string()).into()
}

/// Refuses the command line, unless it is `right`.
pub fn ensure(right: bool, text: impl FnOnce() -> String) -> Result<(), Error> {
    if right { Ok(()) } else { Err(wrong(text())) }
}

/// A number of things of which one is needed at least, as typed.
pub fn count(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "expected a whole number of at least 1")
}

/// The same as a plain number.
pub fn size(text: &str) -> Result<usize, &'static str> {
    count(text).map(NonZeroUsize::get)
}

/// A share from 0 to 1, as typed.
pub fn share(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or("expected a number from 0 to 1")
}
