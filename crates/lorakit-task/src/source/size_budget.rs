//! A limit on what a compressed data file becomes in memory.

use crate::error::{Result, TaskError};

/// The largest ratio of the rows' size to the file's: a constant column compresses to almost nothing.
const MAX_EXPANSION: usize = 200;

/// The size of rows in bytes that is allowed at any ratio.
const ALWAYS_ALLOWED: usize = 1 << 30;

/// The size of a JSON value besides its text.
const VALUE: usize = 32;

/// How many bytes the rows of a file may still take.
pub(crate) struct SizeBudget {
    limit: usize,
    left: usize,
}

impl SizeBudget {
    /// The budget of a file of `size` bytes.
    pub fn of_file(size: usize) -> SizeBudget {
        let limit = size.saturating_mul(MAX_EXPANSION).max(ALWAYS_ALLOWED);
        SizeBudget { limit, left: limit }
    }

    /// Takes a value with a text of `length` bytes.
    pub fn spend(&mut self, length: usize) -> Result<()> {
        self.spend_values(1, length)
    }

    /// Takes `count` values whose texts have `length` bytes.
    pub fn spend_values(&mut self, count: usize, length: usize) -> Result<()> {
        let size = count.saturating_mul(VALUE).saturating_add(length);
        self.left = self.left.checked_sub(size).ok_or_else(|| {
            TaskError::Data(format!("the rows take more than {} bytes, which no file of this size should", self.limit))
        })?;
        Ok(())
    }
}
