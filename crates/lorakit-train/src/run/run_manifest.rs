//! run.json: the jobs of a run, and how they are divided into passes.

use crate::error::{Result, TrainError};
use lorakit_adapter::OpaqueRecord;
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
    /// The settings ([`crate::TrainConfig`]), which nothing reads back: another version may have others.
    pub(crate) settings: OpaqueRecord,
    /// Maximum tokens per forward.
    pub(crate) batch_tokens: usize,
    /// The names of the experts of each pass.
    pub(crate) passes: Vec<Vec<String>>,
    /// What determines each job's weights (a `JobFingerprint` each); not read back either.
    pub(crate) jobs: Vec<OpaqueRecord>,
    /// The number of parts, where processes train the passes at once; fixed by the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parts: Option<usize>,
    /// The vector instructions of the machine that fixed the number of parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vector_instructions: Option<String>,
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
    use crate::run::job_fingerprint::JobFingerprint;

    #[test]
    fn settings_of_another_version_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let text = r#"{"version":"9","seed":0,"base":"b","settings":{"rank":4,"new":true},"batch_tokens":8,"passes":[["a"]],"jobs":[{"new":1}]}"#;
        std::fs::write(&path, text).unwrap();
        assert_eq!(serde_json::to_string(&RunManifest::read(&path).unwrap()).unwrap(), text);
    }

    #[test]
    fn the_run_json_of_version_0_1_keeps_its_bytes() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/library_0.1/runs");
        let folder = tempfile::tempdir().unwrap();
        for run in ["1d7e0517afbc", "94403e74bc28"] {
            let (old, new) = (fixtures.join(run).join("run.json"), folder.path().join(run));
            RunManifest::read(&old).unwrap().write(&new).unwrap();
            assert_eq!(std::fs::read_to_string(new).unwrap(), std::fs::read_to_string(old).unwrap());
            let jobs = RunManifest::read(&fixtures.join(run).join("run.json")).unwrap().jobs;
            let fingerprints: Vec<JobFingerprint> = jobs.iter().map(|job| job.read().unwrap()).collect();
            assert_eq!(&JobFingerprint::sha256_of_all(&fingerprints)[..12], run, "the run's folder");
        }
    }
}
