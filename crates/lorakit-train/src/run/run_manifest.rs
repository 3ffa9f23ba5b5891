//! run.json: the jobs of a run, and how they are divided into passes.

use crate::error::{Result, TrainError};
use crate::run::job_fingerprint::JobFingerprint;
use crate::train_config::TrainConfig;
use lorakit_format::{atomic, read_text};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// run.json.
#[derive(Serialize, Deserialize)]
pub(crate) struct RunManifest {
    /// The version of lorakit that created the run.
    pub(crate) version: String,
    /// The seed.
    pub(crate) seed: u64,
    /// The base's fingerprint.
    pub(crate) base: String,
    /// The settings.
    pub(crate) settings: TrainConfig,
    /// Maximum tokens per forward.
    pub(crate) batch_tokens: usize,
    /// The names of the experts of each pass.
    pub(crate) passes: Vec<Vec<String>>,
    /// What determines each job's weights.
    pub(crate) jobs: Vec<JobFingerprint>,
}

impl RunManifest {
    /// Reads a run.json.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        serde_json::from_str(&read_text(path)?).map_err(|source| TrainError::Manifest { path: path.to_owned(), source })
    }

    /// Writes the run.json, atomically.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        Ok(atomic::write_file(path, &serde_json::to_vec_pretty(self)?)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_run_json_of_version_0_1_keeps_its_bytes() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/library_0.1/runs");
        let folder = tempfile::tempdir().unwrap();
        for run in ["1d7e0517afbc", "94403e74bc28"] {
            let (old, new) = (fixtures.join(run).join("run.json"), folder.path().join(run));
            RunManifest::read(&old).unwrap().write(&new).unwrap();
            assert_eq!(std::fs::read_to_string(new).unwrap(), std::fs::read_to_string(old).unwrap());
            let fingerprints = RunManifest::read(&fixtures.join(run).join("run.json")).unwrap().jobs;
            assert_eq!(&JobFingerprint::sha256_of_all(&fingerprints)[..12], run, "the run's folder");
        }
    }
}
