//! The files of a repository at one commit, in the cache of huggingface_hub.

use super::client::{HubClient, RepositoryInfo};
use super::hub_environment::HubEnvironment;
use super::hub_failure::HubFailure;
use super::repository::{Repository, RepositoryKind};
use super::whole_file::WholeFile;
use crate::command_context::CommandContext;
use crate::output::console::Output;
use anyhow::{Context as _, Result, anyhow};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
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
    api: Api,
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
    Some(folder.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
}

fn download(
    repository: &Repository,
    info: RepositoryInfo,
    files: &impl NeededFiles,
    client: &HubClient,
    context: &CommandContext,
) -> Result<PathBuf> {
    let environment = &client.environment;
    let api = ApiBuilder::from_cache(hf_hub::Cache::new(environment.cache.clone()))
        .with_endpoint(environment.endpoint.clone())
        .with_token(environment.token.clone())
        .with_progress(environment.progress && !context.output.quiet)
        .with_retries(3)
        .build()?;
    let remote = RemoteSnapshot { repository: repository.at(&info.commit), info, client, api, output: context.output };
    files.download(&remote)?;
    let folder = repository.folder(&environment.cache);
    // huggingface_hub keeps a reference for a branch or tag, and none for a commit.
    let _ = fs::remove_file(folder.join("refs").join(&remote.info.commit));
    if repository.revision() != remote.info.commit {
        let reference = folder.join("refs").join(repository.revision());
        if let Some(parent) = reference.parent() {
            fs::create_dir_all(parent)?;
        }
        lorakit_format::atomic::write_file(&reference, remote.info.commit.as_bytes())?;
    } else {
        // Removes an empty folder only.
        let _ = fs::remove_dir(folder.join("refs"));
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
        let known = self.info.blob(file).filter(|blob| self.blobs().join(blob).exists());
        if let Some(blob) = known.filter(|_| !path.exists()) {
            self.link(file, blob, &path)?;
        }
        if path.exists() {
            return Ok(path);
        }
        let kind = match self.repository.kind {
            RepositoryKind::Model => RepoType::Model,
            RepositoryKind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(self.repository.name.clone(), kind, self.info.commit.clone());
        let repo = self.api.repo(repo);
        let failure = loop {
            match repo.download(file) {
                Ok(path) => return Ok(path),
                Err(ApiError::RequestError(error)) => {
                    break HubFailure::of(*error, &self.repository, &self.client.environment).into();
                }
                // After some seconds of waiting for another process that downloads the same file.
                Err(ApiError::LockAcquisition(_)) if path.exists() => return Ok(path),
                Err(ApiError::LockAcquisition(_)) => {}
                // Some mirrors and proxies answer a request for a range with the whole file, or without some headers.
                Err(ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_)) => {
                    match self.get_whole(file, &path) {
                        Ok(()) => return Ok(path),
                        Err(error) => break error,
                    }
                }
                Err(other) => break anyhow::Error::from(other),
            }
        };
        Err(failure.context(format!("{file}: cannot be downloaded")))
    }

    /// Downloads a file with one request.
    fn get_whole(&self, file: &str, path: &Path) -> Result<()> {
        let response = self.client.file(&self.repository, file)?;
        let whole = WholeFile { path: file, blob: self.info.blob(file), length: self.info.size(file) };
        let shown = Output { quiet: self.output.quiet || !self.client.environment.progress, ..self.output };
        let blob = whole.write(response, &self.blobs(), &shown)?;
        self.link(file, &blob, path)
    }

    /// The folder of the contents of files, by their names.
    fn blobs(&self) -> PathBuf {
        self.repository.folder(&self.client.environment.cache).join("blobs")
    }

    /// Links a file to its content in the cache.
    fn link(&self, file: &str, blob: &str, path: &Path) -> Result<()> {
        let link = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            #[cfg(unix)]
            let linked = {
                let up = "../".repeat(2 + file.matches('/').count());
                std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), path)
            };
            #[cfg(not(unix))]
            let linked = fs::copy(self.blobs().join(blob), path).map(|_| ());
            linked
        };
        match link() {
            // Another process has linked it since, to the same content.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.exists() => Ok(()),
            linked => linked.with_context(|| format!("{}: cannot be linked", path.display())),
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
