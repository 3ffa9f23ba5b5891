//! Decompression, with a limit on the size of what comes out.

use std::io::Read;

use crate::error::{Result, TaskError};

/// The largest ratio of decompressed to compressed size. Text compresses to a tenth or a fiftieth of its size, a file that
/// was made to exhaust memory to a thousandth.
const MAX_EXPANSION: u64 = 200;

/// The decompressed size in bytes that is allowed at any ratio.
pub(crate) const ALWAYS_ALLOWED: u64 = 1 << 26;

/// Decompresses gzip, which is recognized by its first two bytes, so that a file's name does not matter. `what` is the
/// file, for errors.
pub(crate) fn decompress(bytes: Vec<u8>, what: &str) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    // Several gzip members in a row are one file, as `cat a.gz b.gz` makes them.
    let limit = (MAX_EXPANSION * bytes.len() as u64).max(ALWAYS_ALLOWED);
    let mut decoder = flate2::read::MultiGzDecoder::new(&bytes[..]).take(limit + 1);
    decoder.read_to_end(&mut plain).map_err(TaskError::read(what))?;
    if plain.len() as u64 > limit {
        return Err(TaskError::Data(format!(
            "more than {limit} bytes when decompressed, {MAX_EXPANSION} times the compressed size; expected rows of text"
        ))
        .at(format!("cannot read {what}")));
    }
    Ok(plain)
}
