//! Downloads one file into the cache, as huggingface_hub's `file_download` does: `blobs/ETAG` holds its content,
//! `blobs/ETAG.incomplete` what there is of it so far, and `.locks` keeps other processes waiting meanwhile. Where files
//! cannot be locked, each process has a part of its own.

use super::client::{HubClient, not_of_the_hub};
use super::hub_failure::HubFailure;
use super::repository::{Repository, RepositoryKind};
use crate::output::console::Output;
use crate::output::progress_bar::download_bar;
use anyhow::{Context as _, Result, ensure};
use hf_hub::{Repo, RepoType};
use indicatif::ProgressBar;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

/// How many times in a row a download that makes no progress is retried.
const RETRIES: u32 = 3;

/// A file to download.
pub struct FileDownload<'a> {
    /// The Hub.
    pub client: &'a HubClient,
    /// The repository, at a commit.
    pub repository: &'a Repository,
    /// Its path in the repository.
    pub file: &'a str,
    /// The name of its content that the Hub's description of the repository gives.
    pub blob: Option<&'a str>,
    /// Whether progress is shown.
    pub progress: bool,
    /// Where it is said that another process is waited for.
    pub output: Output,
}

/// What the Hub says of a file.
struct FileMetadata {
    /// The name of its content in the cache.
    blob: String,
    size: Option<u64>,
}

impl FileDownload<'_> {
    /// Downloads the content unless the cache has it, and returns its name among the blobs.
    pub fn fetch(&self) -> Result<String> {
        let FileMetadata { blob, size } = self.metadata()?;
        let (cache, folder) = (&self.client.environment.cache, self.repo().folder_name());
        let blobs = cache.join(&folder).join("blobs");
        fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())?;
        let lock = self.lock(&cache.join(".locks").join(folder), &blob)?;
        // Another process may have downloaded it meanwhile.
        let whole = blobs.join(&blob);
        if !whole.exists() {
            let owner = if lock.is_some() { String::new() } else { format!("{}.", std::process::id()) };
            let part = blobs.join(format!("{blob}.{owner}incomplete"));
            let completed = self.complete(&part, size).and_then(|()| put_in_place(&part, &whole, size));
            if completed.is_err() && lock.is_none() {
                // No other process would take it up.
                let _ = fs::remove_file(&part);
            }
            completed?;
        }
        Ok(blob)
    }

    /// Keeps other processes from downloading the same content until the file is dropped; None where the file system has no
    /// locks.
    fn lock(&self, folder: &Path, blob: &str) -> Result<Option<File>> {
        let path = folder.join(format!("{blob}.lock"));
        let open = || {
            fs::create_dir_all(folder)?;
            OpenOptions::new().create(true).truncate(false).write(true).open(&path)
        };
        let file = open().with_context(|| format!("{}: cannot be opened", path.display()))?;
        let locked = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                self.output.status(format!("waiting for another process that downloads {}", self.file));
                file.lock().is_ok()
            }
            Err(TryLockError::Error(_)) => false,
        };
        Ok(locked.then_some(file))
    }

    fn repo(&self) -> Repo {
        let kind = match self.repository.kind {
            RepositoryKind::Model => RepoType::Model,
            RepositoryKind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(self.repository.name.clone(), kind, self.repository.revision().to_owned())
    }

    fn url(&self) -> String {
        let (endpoint, repo) = (&self.client.environment.endpoint, self.repo());
        format!("{endpoint}/{}/resolve/{}/{}", repo.url(), repo.url_revision(), percent_encoded(self.file))
    }

    fn failure(&self, error: Option<Box<ureq::Error>>) -> HubFailure {
        self.client.failure(error, self.repository, Some(self.file))
    }

    /// What the Hub says of the file, or the storage to which the Hub redirects where it says nothing.
    fn metadata(&self) -> Result<FileMetadata> {
        let url = self.url();
        let linked = |response: &ureq::Response| etag(response).is_some();
        let response = self.client.send("HEAD", &url, &[IDENTITY], linked).map_err(|error| self.failure(error))?;
        let blob = etag(&response).or_else(|| self.blob.map(str::to_owned));
        // The length of a redirection is not the file's.
        let length = if response.status() == 200 { response.header("Content-Length") } else { None };
        let size = response.header("X-Linked-Size").or(length).and_then(|size| size.parse().ok());
        let blob = blob.with_context(|| format!("{}: it has no usable ETag", not_of_the_hub(&url)))?;
        Ok(FileMetadata { blob, size })
    }

    /// Downloads what the partial file lacks.
    fn complete(&self, part: &Path, size: Option<u64>) -> Result<()> {
        let bar = download_bar(self.progress, self.file);
        let (mut furthest, mut retries) = (length(part), 0);
        loop {
            let Err(failure) = self.resume(part, size, &bar)? else { break };
            let reached = length(part);
            if reached > furthest {
                (furthest, retries) = (reached, 0);
            }
            if !failure.is_temporary() || retries == RETRIES {
                return Err(failure.into());
            }
            retries += 1;
            std::thread::sleep(Duration::from_millis(300) * retries);
        }
        bar.finish();
        Ok(())
    }

    /// One attempt to download the rest. A failure of the Hub leaves what arrived in the file.
    fn resume(&self, part: &Path, size: Option<u64>, bar: &ProgressBar) -> Result<Result<(), HubFailure>> {
        let cannot = || format!("{}: cannot be written", part.display());
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(part).with_context(cannot)?;
        let mut done = file.seek(SeekFrom::End(0)).with_context(cannot)?;
        if done > 0 && Some(done) == size {
            return Ok(Ok(()));
        }
        let range = format!("bytes={done}-");
        let headers = [IDENTITY, ("Range", &range)];
        let headers = if done == 0 { &headers[..1] } else { &headers };
        let response = match self.client.send("GET", &self.url(), headers, |_| false) {
            Ok(response) => response,
            Err(error) => {
                let failure = self.failure(error);
                if done > 0 && matches!(failure, HubFailure::Status(416, _)) {
                    restart(&mut file).with_context(cannot)?;
                    return Ok(Err(HubFailure::Truncated(
                        "the partial file does not fit; it is downloaded again".to_owned(),
                    )));
                }
                return Ok(Err(failure));
            }
        };
        match response.status() {
            206 if continues(&response, done) => {}
            // A server without ranges sends the whole file.
            200 => done = restart(&mut file).with_context(cannot)?,
            206 => {
                restart(&mut file).with_context(cannot)?;
                return Ok(Err(HubFailure::Truncated("the server sent another range".to_owned())));
            }
            status => return Ok(Err(HubFailure::Status(status, response.status_text().to_owned()))),
        }
        let length = response.header("Content-Length").and_then(|length| length.parse::<u64>().ok());
        bar.set_length(size.or(length.map(|length| done + length)).unwrap_or_default());
        bar.set_position(done);
        match copy(response, &mut file, bar).with_context(cannot)? {
            Ok(copied) => done += copied,
            Err(reason) => return Ok(Err(HubFailure::Truncated(reason))),
        }
        if let Some(size) = size.filter(|&size| size != done) {
            if done > size {
                restart(&mut file).with_context(cannot)?;
            }
            return Ok(Err(HubFailure::Truncated(format!("{done} of {size} bytes received"))));
        }
        Ok(Ok(()))
    }
}

/// Compressed, a file would have another length, and no ranges.
const IDENTITY: (&str, &str) = ("Accept-Encoding", "identity");

/// Writes the content to the file as it arrives, and returns its length; the inner error says why it ended early.
fn copy(response: ureq::Response, file: &mut File, bar: &ProgressBar) -> std::io::Result<Result<u64, String>> {
    let mut reader = response.into_reader();
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Ok(copied)),
            Ok(read) => {
                file.write_all(&buffer[..read])?;
                copied += read as u64;
                bar.inc(read as u64);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
}

/// Empties the file, and returns its new length.
fn restart(file: &mut File) -> std::io::Result<u64> {
    file.set_len(0)?;
    file.rewind()?;
    Ok(0)
}

/// Gives a complete part the name of the whole content. Where there are no locks, another program may have done so, or have
/// changed the part.
fn put_in_place(part: &Path, whole: &Path, size: Option<u64>) -> Result<()> {
    let found = fs::metadata(part).map(|found| found.len());
    if let (Ok(found), Some(size)) = (&found, size) {
        ensure!(*found == size, "{}: has {found} of {size} bytes, after another program changed it", part.display());
    }
    match found.and_then(|_| fs::rename(part, whole)) {
        Err(error) if error.kind() == ErrorKind::NotFound && whole.exists() => Ok(()),
        renamed => renamed.with_context(|| format!("{}: cannot be renamed", part.display())),
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Whether a response with a part of a file has its bytes from `start` on.
fn continues(response: &ureq::Response, start: u64) -> bool {
    let first = response.header("Content-Range").and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    first.and_then(|first| first.trim().parse().ok()) == Some(start)
}

/// The name of a file's content that a response gives: that of the linked file, or of the answer itself.
fn etag(response: &ureq::Response) -> Option<String> {
    let of = |header: &str| response.header(header).and_then(blob_name);
    of("X-Linked-Etag").or_else(|| of("ETag"))
}

/// The name of a blob by an ETag, as huggingface_hub has it. It becomes a file name, so it may hold no path.
fn blob_name(etag: &str) -> Option<String> {
    let name = etag.trim().trim_start_matches("W/").trim_matches('"');
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    (is_plain && (1..=128).contains(&name.len())).then(|| name.to_owned())
}

/// A path with everything escaped that has a meaning in addresses.
fn percent_encoded(path: &str) -> String {
    let escaped = |byte: u8| match byte {
        plain if plain.is_ascii_alphanumeric() || b"/-._~".contains(&plain) => char::from(plain).to_string(),
        byte => format!("%{byte:02X}"),
    };
    path.bytes().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_blob_is_named_by_a_plain_etag() {
        for etag in ["\"ab-12_\"", "W/\"ab-12_\"", "ab-12_"] {
            assert_eq!(blob_name(etag).as_deref(), Some("ab-12_"), "{etag}");
        }
        for etag in ["", "\"\"", "\"../victim\"", "\"a/b\"", "\"a\\b\"", "\"..\"", "\"c:d\""] {
            assert_eq!(blob_name(etag), None, "{etag}");
        }
        assert_eq!(blob_name(&"a".repeat(300)), None);
    }

    #[test]
    fn only_a_whole_part_is_put_in_place_unless_another_was() {
        let folder = tempfile::tempdir().unwrap();
        let (part, whole) = (folder.path().join("ab.incomplete"), folder.path().join("ab"));
        let put = |size| put_in_place(&part, &whole, size);
        assert!(put(Some(3)).unwrap_err().to_string().contains("cannot be renamed"));
        fs::write(&part, "ab").unwrap();
        assert!(put(Some(3)).unwrap_err().to_string().contains("has 2 of 3 bytes"));
        assert!(!whole.exists());
        put(Some(2)).unwrap();
        assert_eq!(fs::read(&whole).unwrap(), b"ab");
        put(Some(2)).unwrap();
    }

    #[test]
    fn paths_are_escaped_in_addresses() {
        assert_eq!(percent_encoded("a-b/c d#1?.gguf"), "a-b/c%20d%231%3F.gguf");
        assert_eq!(percent_encoded("é%"), "%C3%A9%25");
    }
}
