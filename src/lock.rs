//! The right to change a library, waited for where another process has it.

use crate::context::Context;
use anyhow::Result;
use lorakit_adapter::{Library, LibraryLock};

/// The library's lock. Whoever has to wait for it is told why nothing happens.
pub fn lock(library: &Library, context: &Context) -> Result<LibraryLock> {
    if let Some(lock) = library.try_lock()? {
        return Ok(lock);
    }
    let root = library.root().display();
    context.output.notice(format!("another process is changing {root}; waiting until it ends (Ctrl-C gives up)"));
    library.lock()
}
