//! The lock of a library, waited for where another process holds it.

use crate::error::Result;
use crate::open_library::ensure_same_base;
use crate::reporter::Reporter;
use lorakit_adapter::{Library, LibraryLock};
use lorakit_model::Base;

/// Locks the library; if it has to wait, the user is told why.
///
/// # Errors
/// Where the lock file cannot be created.
pub fn lock(library: &Library, reporter: &dyn Reporter) -> Result<LibraryLock> {
    if let Some(lock) = library.try_lock()? {
        return Ok(lock);
    }
    let root = library.root().display();
    reporter.warn(&format!(
        "another process is changing {root}, or trains a part of it; waiting until it ends (Ctrl-C stops waiting)"
    ));
    Ok(library.lock()?)
}

/// Locks a library that is to serve `base`. Its contents are checked under the lock, since another process may have
/// added experts while this one waited.
///
/// # Errors
/// Where anything in the library belongs to another base.
pub fn lock_for(library: &Library, base: &Base, reporter: &dyn Reporter) -> Result<LibraryLock> {
    let lock = lock(library, reporter)?;
    ensure_same_base(library, base)?;
    Ok(lock)
}
