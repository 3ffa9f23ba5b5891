//! The folder of a run, and where in it a pass has its log and its checkpoint.

use crate::error::{Result, TrainError};
use crate::run::job_fingerprint::JobFingerprint;
use crate::run::run_manifest::RunManifest;
use crate::run::run_part::{RunPart, part_of_pass};
use lorakit_adapter::Library;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The folder of a run, which need not exist.
pub(crate) struct RunFolder<'a> {
    library: &'a Library,
    /// The folder's name, by which the same command finds it again.
    pub(crate) id: String,
    pub(crate) path: PathBuf,
}

impl<'a> RunFolder<'a> {
    /// The folder of the run that trains these jobs.
    pub(crate) fn new(library: &'a Library, fingerprints: &[JobFingerprint]) -> Result<Self> {
        let id = JobFingerprint::sha256_of_all(fingerprints)[..12].to_owned();
        Ok(Self { library, path: library.run_folder(&id)?, id })
    }

    pub(crate) fn manifest_path(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// The run.json, if the run has begun.
    pub(crate) fn manifest(&self) -> Result<Option<RunManifest>> {
        let path = self.manifest_path();
        if path.exists() { RunManifest::read(&path).map(Some) } else { Ok(None) }
    }

    /// Refuses a part of another number of parts than the run has.
    pub(crate) fn check_part(&self, manifest: &RunManifest, part: RunPart) -> Result<()> {
        match manifest.parts {
            Some(recorded) if recorded != part.count => {
                Err(TrainError::OtherParts { path: self.manifest_path(), recorded, part })
            }
            _ => Ok(()),
        }
    }

    /// The folder of a pass's log and checkpoint: where the run has parts, that of its part.
    pub(crate) fn of_pass(&self, pass: usize, parts: Option<usize>) -> Result<PathBuf> {
        match parts {
            Some(count) => Ok(self.library.part_folder(&self.id, part_of_pass(pass, count))?),
            None => Ok(self.path.clone()),
        }
    }

    /// The path of a pass's checkpoint.
    pub(crate) fn checkpoint(&self, pass: usize, parts: Option<usize>) -> Result<PathBuf> {
        Ok(checkpoint_in(&self.of_pass(pass, parts)?, pass))
    }

    /// Moves the checkpoint of a pass, which a run without parts has left, to the folder of its part.
    pub(crate) fn adopt_checkpoint(&self, pass: usize, parts: Option<usize>) -> Result<()> {
        let (old, new) = (checkpoint_in(&self.path, pass), self.checkpoint(pass, parts)?);
        if old == new || !old.exists() {
            return Ok(());
        }
        std::fs::rename(&old, &new).map_err(|source| TrainError::Io { path: old, action: "moved", source })
    }

    /// Removes checkpoints of passes whose experts are all in the library, which a process leaves that is killed between
    /// the two; of one part, if one is given.
    pub(crate) fn remove_stale(&self, finished: &[String], part: Option<RunPart>) -> Result<()> {
        let Some(manifest) = self.manifest()? else { return Ok(()) };
        let finished: HashSet<&String> = finished.iter().collect();
        for (pass, experts) in manifest.passes.iter().enumerate() {
            let is_own = part.is_none_or(|part| part.has(pass));
            if is_own && experts.iter().all(|name| finished.contains(name)) {
                remove_if_exists(&self.checkpoint(pass, manifest.parts)?)?;
            }
        }
        Ok(())
    }
}

fn checkpoint_in(folder: &Path, pass: usize) -> PathBuf {
    folder.join(format!("pass-{pass}.safetensors"))
}

/// Creates a folder, with those that it is in, if it is missing.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| TrainError::Io { path: path.to_owned(), action: "created", source })
}

/// Removes a file, if there is one.
pub(crate) fn remove_if_exists(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::Io { path: path.to_owned(), action: "removed", source })
        }
        _ => Ok(()),
    }
}
