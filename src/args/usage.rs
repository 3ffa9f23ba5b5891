//! Usage errors, which exit with code 2 as clap's own do, and parsers of option values.

use anyhow::Error;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

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

/// Whether two paths name one file, which need not exist yet.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((resolved(one), resolved(other)), (Ok(one), Ok(other)) if one == other)
}

/// The absolute path of a file, without links as far as it exists.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let whole = path.canonicalize();
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if whole.is_err() => Ok(resolved(parent)?.join(name)),
        _ => whole,
    }
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

/// Parses a finite number of at least 0.
pub fn non_negative(text: &str) -> Result<f64, &'static str> {
    finite(text).ok().filter(|number| *number >= 0.0).ok_or("expected a finite number of at least 0")
}

/// Parses a count of at least one as `usize`.
pub fn size(text: &str) -> Result<usize, &'static str> {
    count(text).map(NonZeroUsize::get)
}

/// Parses a fraction from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction)).ok_or("expected a number from 0 to 1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_the_same_however_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        assert!(is_same_file(Path::new("c.json"), Path::new("./c.json")));
        assert!(is_same_file(&of("new/c.json"), &of("new/./c.json")));
        assert!(!is_same_file(&of("c.json"), &of("d.json")));
        std::fs::create_dir(of("real")).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(of("real"), of("link")).unwrap();
            assert!(is_same_file(&of("real/c.json"), &of("link/c.json")));
            assert!(is_same_file(&of("real/new/c.json"), &of("link/new/c.json")));
        }
        std::fs::write(of("real/c.json"), "").unwrap();
        assert!(is_same_file(&of("real/c.json"), &of("real/../real/c.json")));
    }

    #[test]
    fn tolerances_are_finite_and_not_negative() {
        assert_eq!((non_negative("0"), non_negative("1e-3")), (Ok(0.0), Ok(1e-3)));
        assert!(["nan", "-1", "inf", "x"].into_iter().all(|text| non_negative(text).is_err()));
    }
}
