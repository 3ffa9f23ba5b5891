//! The right to change a library, waited for where another process has it.

use crate::context::Context;
use crate::experts;
use anyhow::Result;
use lorakit_adapter::{Library, LibraryLock};
use lorakit_model::Base;

/// The library's lock. Whoever has to wait for it is told why nothing happens.
pub fn lock(library: &Library, context: &Context) -> Result<LibraryLock> {
    if let Some(lock) = library.try_lock()? {
        return Ok(lock);
    }
    let root = library.root().display();
    context.output.notice(format!("another process is changing {root}; waiting until it ends (Ctrl-C gives up)"));
    library.lock()
}

/// The lock of a library that is to serve `base`. What is in it is judged under the lock: another process may have put
/// experts in while this one waited.
pub fn lock_for(library: &Library, base: &Base, context: &Context) -> Result<LibraryLock> {
    let lock = lock(library, context)?;
    experts::ensure_all_of(library, base)?;
    Ok(lock)
}
