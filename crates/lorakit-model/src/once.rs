//! What is made by the first that asks for it, and may fail to be.

use candle_core::Result;
use std::sync::OnceLock;

/// What is there, or is made now and stays.
pub(crate) fn once<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match place.get() {
        Some(made) => Ok(made),
        None => make().map(|made| place.get_or_init(|| made)),
    }
}
