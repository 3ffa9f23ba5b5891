//! Fallible lazy initialization.

use candle_core::Result;
use std::sync::OnceLock;

/// The value of `cell`, made now if there is none. If two threads make one at once, the first is kept.
pub(crate) fn get_or_try_init<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => make().map(|value| cell.get_or_init(|| value)),
    }
}
