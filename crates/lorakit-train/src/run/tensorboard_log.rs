//! The curves of a run for TensorBoard, written from the lines of log.jsonl.

use crate::error::{Result, TrainError};
use lorakit_format::atomic;
use lorakit_format::event_file::{Scalar, scalar_record, version_record};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file's name: TensorBoard reads files whose names contain `tfevents`.
const FILE: &str = "events.out.tfevents.lorakit";

/// An event file beside log.jsonl, open for appending. Its curves are `loss/EXPERT`, `validation_loss/EXPERT`,
/// `grad_norm/EXPERT` and `learning_rate/EXPERT`. It holds the times of writing, so unlike all else its bytes differ
/// between equal runs.
pub(crate) struct TensorBoardLog {
    file: File,
    path: PathBuf,
}

impl TensorBoardLog {
    /// Writes the file in `folder` anew from the lines of the log so far.
    pub(crate) fn create(folder: &Path, lines: &[&[u8]]) -> Result<Self> {
        let path = folder.join(FILE);
        let now = wall_time();
        let mut bytes = version_record(now);
        for line in lines {
            // The log's reader has removed what is not a line.
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            bytes.extend(records(&line, now));
        }
        atomic::write_file(&path, &bytes)?;
        match OpenOptions::new().append(true).open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(TrainError::Io { path, action: "written", source }),
        }
    }

    /// Appends the curves' values in a line of the log.
    pub(crate) fn write(&mut self, line: &Value) -> Result<()> {
        self.file.write_all(&records(line, wall_time())).map_err(|source| TrainError::Io {
            path: self.path.clone(),
            action: "written",
            source,
        })
    }
}

/// The records of a line of the log.
fn records(line: &Value, wall_time: f64) -> Vec<u8> {
    let step = line["step"].as_u64().unwrap_or_default();
    let mut bytes = Vec::new();
    let mut add = |curve: &str, expert: &str, value: &Value| {
        let Some(value) = value.as_f64() else { return };
        let scalar = Scalar { tag: &format!("{curve}/{expert}"), step, value: value as f32 };
        bytes.extend(scalar_record(scalar, wall_time));
    };
    for (expert, record) in line["train"].as_object().into_iter().flatten() {
        for curve in ["loss", "grad_norm", "learning_rate"] {
            add(curve, expert, &record[curve]);
        }
    }
    for (expert, loss) in line["validation"].as_object().into_iter().flatten() {
        add("validation_loss", expert, loss);
    }
    bytes
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_number_of_a_line_is_a_value_of_a_curve() {
        let line = json!({"pass": 0, "step": 3, "tokens": 9,
            "train": {"a": {"loss": 1.5, "grad_norm": null, "learning_rate": 1e-4}}, "validation": {"a": 2.0}});
        let folder = tempfile::tempdir().unwrap();
        let mut log = TensorBoardLog::create(folder.path(), &[line.to_string().as_bytes()]).unwrap();
        let before = std::fs::read(folder.path().join(FILE)).unwrap();
        log.write(&line).unwrap();
        let after = std::fs::read(folder.path().join(FILE)).unwrap();
        let added = after.strip_prefix(before.as_slice()).unwrap();
        let holds = |tag: &str| added.windows(tag.len()).filter(|part| *part == tag.as_bytes()).count();
        let counts = ["loss/a", "learning_rate/a", "validation_loss/a", "grad_norm/a"].map(holds);
        assert_eq!(counts, [2, 1, 1, 0], "loss/a is in validation_loss/a too");
    }
}
