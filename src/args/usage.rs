//! Usage errors, which exit with code 2 as clap's own do, and parsers of option values.

use anyhow::Error;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

/// The exit code of a usage error.
pub const EXIT_CODE: u8 = 2;

/// The error of a command line that is wrong whatever the files contain.
#[derive(Debug)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A usage error with this message.
pub fn usage_error(text: impl fmt::Display) -> Error {
    UsageError(text.to_string()).into()
}

/// Fails with a usage error unless `valid`.
pub fn ensure(valid: bool, text: impl FnOnce() -> String) -> Result<(), Error> {
    if valid { Ok(()) } else { Err(usage_error(text())) }
}

/// Whether two paths name one file.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Parses a count of at least one.
pub fn count(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "expected a whole number of at least 1")
}

/// Parses a count of at least one that sizes an allocation.
pub fn bounded_count(text: &str) -> Result<NonZeroUsize, &'static str> {
    const MOST: usize = 1 << 20;
    count(text)
        .ok()
        .filter(|count| count.get() <= MOST)
        .ok_or("expected a whole number of at least 1 and at most 1048576")
}

/// Parses a number that is neither infinite nor NaN.
pub fn finite(text: &str) -> Result<f64, &'static str> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite()).ok_or("expected a finite number")
}

/// Parses a count of at least one as `usize`.
pub fn size(text: &str) -> Result<usize, &'static str> {
    count(text).map(NonZeroUsize::get)
}

/// Parses a fraction from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction)).ok_or("expected a number from 0 to 1")
}
