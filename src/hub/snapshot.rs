//! The files of a repository at one commit, in the cache of huggingface_hub.

use super::client::{HubClient, RepositoryInfo};
use super::file_download::FileDownload;
use super::hub_environment::HubEnvironment;
use super::hub_failure::HubFailure;
use super::repository::{Repository, is_commit_hash};
use crate::command_context::CommandContext;
use crate::output::console::Output;
use anyhow::{Context as _, Result, anyhow};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The files that are needed of a repository.
pub trait NeededFiles {
    /// Downloads the files that are needed.
    fn download(&self, remote: &RemoteSnapshot<'_>) -> Result<()>;

    /// Says what is missing from a folder with some of the files; None if it has all that are needed.
    fn missing(&self, folder: &Path) -> Option<String>;

    /// Whether a folder of a commit needs no look at the Hub.
    fn suffices(&self, folder: &Path) -> bool {
        self.missing(folder).is_none()
    }
}

/// A repository at one commit on the Hub.
pub struct RemoteSnapshot<'a> {
    /// What it holds.
    pub info: RepositoryInfo,
    repository: Repository,
    client: &'a HubClient,
    /// Whether the progress of downloads is shown.
    progress: bool,
    output: Output,
}

/// The folder of a repository's files, downloaded where they are not in the cache. Where the Hub does not answer, an
/// earlier download counts.
pub fn snapshot(repository: &Repository, files: &impl NeededFiles, context: &CommandContext) -> Result<PathBuf> {
    let client = HubClient::new();
    let found = find(repository, files, &client, context);
    found.with_context(|| repository.to_string())
}

fn find(
    repository: &Repository,
    files: &impl NeededFiles,
    client: &HubClient,
    context: &CommandContext,
) -> Result<PathBuf> {
    let cached = cached(repository, &client.environment.cache);
    if let Some(folder) = cached.as_ref().filter(|folder| repository.is_commit() && files.suffices(folder)) {
        return Ok(folder.clone());
    }
    let failure = match client.info(repository)? {
        Ok(info) => return download(repository, info, files, client, context),
        Err(failure) => failure,
    };
    let Some(folder) = cached.filter(|_| !matches!(failure, HubFailure::NoRevision(_))) else {
        let cache = client.environment.cache.display();
        return Err(match failure {
            HubFailure::NoNetwork { .. } | HubFailure::Offline => {
                anyhow::Error::from(failure).context(format!("the cache {cache} has no copy"))
            }
            failure => failure.into(),
        });
    };
    if let Some(missing) = files.missing(&folder) {
        let incomplete = format!("the cached {} is incomplete: it has no {missing}", folder.display());
        return Err(anyhow::Error::from(failure).context(incomplete));
    }
    if failure != HubFailure::Offline {
        context.output.warn(format!("{repository}: {failure}. Using the cached {}", folder.display()));
    }
    Ok(folder)
}

/// Whether there is an earlier download of a repository.
pub fn is_cached(repository: &Repository) -> bool {
    cached(repository, &HubEnvironment::read().cache).is_some()
}

/// The folder of an earlier download: that of the commit that was then the revision's.
fn cached(repository: &Repository, cache: &Path) -> Option<PathBuf> {
    let folder = repository.folder(cache);
    let commit = match fs::read_to_string(folder.join("refs").join(repository.revision())) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => repository.revision().to_owned(),
    };
    // A path instead would lead out of the cache.
    let folder = folder.join("snapshots").join(Some(commit).filter(|commit| is_commit_hash(commit))?);
    Some(folder).filter(|folder| folder.is_dir())
}

fn download(
    repository: &Repository,
    info: RepositoryInfo,
    files: &impl NeededFiles,
    client: &HubClient,
    context: &CommandContext,
) -> Result<PathBuf> {
    let environment = &client.environment;
    let progress = environment.progress && !context.output.quiet;
    let remote =
        RemoteSnapshot { repository: repository.at(&info.commit), info, client, progress, output: context.output };
    files.download(&remote)?;
    // huggingface_hub keeps a reference for a branch or tag, and none for a commit.
    if repository.revision() != remote.info.commit {
        let reference = repository.folder(&environment.cache).join("refs").join(repository.revision());
        if let Some(parent) = reference.parent() {
            fs::create_dir_all(parent)?;
        }
        lorakit_format::atomic::write_file(&reference, remote.info.commit.as_bytes())?;
    }
    let folder = remote.folder();
    match files.missing(&folder) {
        None => Ok(folder),
        Some(missing) => Err(anyhow!("the repository has no {missing}; it has {}", remote.listing())),
    }
}

impl RemoteSnapshot<'_> {
    /// The folder of the commit in the cache.
    pub fn folder(&self) -> PathBuf {
        self.repository.folder(&self.client.environment.cache).join("snapshots").join(&self.info.commit)
    }

    /// Downloads a file unless the cache has it, and returns its path. An interrupted download goes on where it stopped.
    pub fn get(&self, file: &str) -> Result<PathBuf> {
        let path = self.folder().join(file);
        if path.is_symlink() && !path.exists() {
            // Its content was deleted.
            fs::remove_file(&path)?;
        }
        let known = self.info.blob(file);
        if path.exists() || known.map_or(Ok(false), |blob| self.link(file, &path, blob))? {
            return Ok(path);
        }
        let (client, repository, progress, output) = (self.client, &self.repository, self.progress, self.output);
        let download = FileDownload { client, repository, file, blob: known, progress, output };
        let blob = download.fetch().with_context(|| format!("{file}: cannot be downloaded"))?;
        self.link(file, &path, &blob)?;
        Ok(path)
    }

    /// Links a file to its content, if the cache has that.
    fn link(&self, file: &str, path: &Path, blob: &str) -> Result<bool> {
        let blobs = self.repository.folder(&self.client.environment.cache).join("blobs");
        if !blobs.join(blob).exists() {
            return Ok(false);
        }
        let link = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            #[cfg(unix)]
            let linked = {
                let up = "../".repeat(2 + file.matches('/').count());
                std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), path)
            };
            #[cfg(not(unix))]
            let linked = fs::hard_link(blobs.join(blob), path).or_else(|_| fs::copy(blobs.join(blob), path).map(drop));
            linked
        };
        match link() {
            // Another process has linked it since, to the same content.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.exists() => Ok(true),
            linked => linked.map(|()| true).with_context(|| format!("{}: cannot be linked", path.display())),
        }
    }

    /// Its files, the first of them where there are many.
    fn listing(&self) -> String {
        let files: Vec<&str> = self.info.files().filter(|file| *file != ".gitattributes").collect();
        if files.is_empty() {
            return "no files".to_owned();
        }
        let shown = files[..files.len().min(12)].join(", ");
        if files.len() > 12 { format!("{shown} and {} more", files.len() - 12) } else { shown }
    }
}
