//! A file of the Hub from one response, for mirrors and proxies that answer no requests for ranges, which hf-hub needs.

use crate::output::console::Output;
use crate::output::progress_bar::byte_bar;
use anyhow::{Context as _, Result, ensure};
use lorakit_format::atomic::write_file_by;
use lorakit_format::hash::sha256_of_file;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// A file to download.
pub struct WholeFile<'a> {
    /// Its path in the repository.
    pub path: &'a str,
    /// The name of its content in the cache, if the Hub says it.
    pub blob: Option<&'a str>,
    /// Its length in bytes, if the Hub says it.
    pub length: Option<u64>,
}

impl WholeFile<'_> {
    /// Writes the file to the folder of contents, and returns the name that it has there: as in huggingface_hub, the `ETag`.
    ///
    /// # Errors
    /// If the response does not have the whole content; then nothing is left behind.
    pub fn write(&self, response: ureq::Response, blobs: &Path, output: &Output) -> Result<String> {
        let blob = match self.blob {
            Some(blob) => blob.to_owned(),
            None => etag(&response).context("the response has no usable ETag; check HF_ENDPOINT and proxies")?,
        };
        let length = self.length.or_else(|| response.header("Content-Length")?.parse().ok());
        fs::create_dir_all(blobs)?;
        let bar = byte_bar(output, length, self.path.to_owned());
        let copy = |temporary: &Path| -> Result<()> {
            let mut reader = bar.wrap_read(response.into_reader());
            let found = io::copy(&mut reader, &mut File::create(temporary)?)?;
            if let Some(length) = length {
                ensure!(found == length, "{found} bytes arrived of {length}; check HF_ENDPOINT and proxies");
            }
            // A large file's name is its hash; a small one's is git's, or the server's.
            let is_whole = self.blob.is_none_or(|blob| blob.len() != 64) || sha256_of_file(temporary)? == blob;
            ensure!(is_whole, "the content that arrived is not what the Hub describes; check HF_ENDPOINT and proxies");
            Ok(())
        };
        let written = write_file_by(&blobs.join(&blob), copy);
        bar.finish_and_clear();
        Ok(written.map(|()| blob)?)
    }
}

/// The name that a response gives its content, without quotes and the mark of a weak one; none where it is no file's name.
fn etag(response: &ureq::Response) -> Option<String> {
    let etag = response.header("X-Linked-ETag").or_else(|| response.header("ETag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let is_name = !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    is_name.then(|| etag.to_owned())
}
