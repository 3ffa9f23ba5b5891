//! log.jsonl: one line per step of a run, and the same for TensorBoard.

use crate::error::{Result, TrainError};
use crate::pass::{Pass, StepOutput};
use crate::run::tensorboard_log::TensorBoardLog;
use lorakit_format::atomic;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log of a run, open for appending.
pub(crate) struct RunLog {
    file: std::fs::File,
    path: PathBuf,
    tensorboard: TensorBoardLog,
    /// The passes that have lines.
    passes: BTreeSet<u64>,
}

/// A line of the log. Values are in f64, since JSON of f32 values has other digits.
#[derive(Serialize)]
struct LogLine {
    pass: usize,
    step: usize,
    tokens: usize,
    /// By expert, in the order of the pass: a [`StepRecord`].
    train: Map<String, Value>,
    /// By expert: the validation loss.
    #[serde(skip_serializing_if = "Map::is_empty")]
    validation: Map<String, Value>,
}

/// An expert's step.
#[derive(Serialize)]
struct StepRecord {
    loss: f64,
    /// None where it is not finite.
    grad_norm: Option<f64>,
    /// The learning rate of the update; None for an expert that diverged, and was not updated.
    learning_rate: Option<f64>,
}

impl RunLog {
    /// The log of the run in `folder` for another pass, as [`RunLog::open`] opens it: `last`, the log of the pass before,
    /// unless that is of another folder or has lines of this pass. A log that is read again for each of many passes takes
    /// longer and longer.
    pub(crate) fn of_next_pass(last: Option<Self>, folder: &Path, pass: usize, done: usize) -> Result<Self> {
        match last {
            Some(log) if log.path.parent() == Some(folder) && !log.passes.contains(&(pass as u64)) => Ok(log),
            _ => Self::open(folder, pass, done),
        }
    }

    /// Opens the log of the run in `folder` for a pass that continues after `done` steps. Later lines of the pass, which
    /// a killed process wrote, are removed, as is an incomplete last line.
    fn open(folder: &Path, pass: usize, done: usize) -> Result<Self> {
        let path = folder.join("log.jsonl");
        // Bytes: an incomplete line may end within a character, which must not affect the lines before it.
        let before = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(TrainError::Io { path, action: "read", source }),
        };
        let mut passes = BTreeSet::new();
        let stays = |line: &&[u8]| {
            let Ok(line) = serde_json::from_slice::<Value>(line) else { return false };
            let stays = line["pass"] != pass || line["step"].as_u64().is_some_and(|step| step <= done as u64);
            passes.extend(line["pass"].as_u64().filter(|_| stays));
            stays
        };
        let kept: Vec<&[u8]> = before.split(|byte| *byte == b'\n').filter(stays).collect();
        let lines: Vec<&[u8]> = kept.iter().flat_map(|line| [*line, b"\n"]).collect();
        // Rewritten even if nothing changes: a symbolic link in its place is replaced, never followed.
        atomic::write_file(&path, &lines.concat())?;
        let tensorboard = TensorBoardLog::create(folder, &kept)?;
        match OpenOptions::new().append(true).open(&path) {
            Ok(file) => Ok(Self { file, path, tensorboard, passes }),
            Err(source) => Err(TrainError::Io { path, action: "written", source }),
        }
    }

    /// Appends the line of a step.
    pub(crate) fn write(&mut self, index: usize, step: &StepOutput, pass: &Pass) -> Result<()> {
        let (mut train, mut validation) = (Map::new(), Map::new());
        for (expert, job) in pass.jobs().iter().enumerate() {
            let Some(loss) = step.losses[expert] else { continue };
            // In f32, as the expert's record has it.
            let grad_norm = Some(step.norms[expert] as f32).filter(|norm| norm.is_finite()).map(f64::from);
            let learning_rate = step.learning_rates[expert];
            let record = StepRecord { loss: f64::from(loss), grad_norm, learning_rate };
            train.insert(job.name.clone(), serde_json::to_value(record)?);
        }
        for &(expert, loss) in &step.validated {
            validation.insert(pass.jobs()[expert].name.clone(), f64::from(loss).into());
        }
        self.passes.insert(index as u64);
        let line = LogLine { pass: index, step: step.step, tokens: step.tokens, train, validation };
        let text = serde_json::to_string(&line)? + "\n";
        self.tensorboard.write(&serde_json::to_value(&line)?)?;
        // A single write: other processes do not tear the line, and a kill rarely does.
        self.file.write_all(text.as_bytes()).map_err(|source| TrainError::Io {
            path: self.path.clone(),
            action: "written",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn an_incomplete_line_is_removed_wherever_it_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line =
            |pass: usize, step: u64| format!("{}\n", json!({ "pass": pass, "step": step, "train": { "ärger": 1 } }));
        let whole = [line(0, 9), line(1, 1), line(1, 2)].concat();
        let torn = line(1, 2);
        for cut in 0..torn.len() {
            std::fs::write(&path, [whole.as_bytes(), &torn.as_bytes()[..cut]].concat()).unwrap();
            RunLog::open(folder.path(), 1, 1).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), line(0, 9) + &line(1, 1), "cut at {cut}");
        }
    }

    #[test]
    fn only_a_pass_that_has_lines_reads_the_log_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line = |pass: usize, step: u64| format!("{}\n", json!({ "pass": pass, "step": step }));
        std::fs::write(&path, [line(0, 1), line(2, 1), line(2, 2)].concat()).unwrap();
        let log = RunLog::of_next_pass(None, folder.path(), 0, 1).unwrap();
        // Another reading would remove it.
        let torn = [line(0, 1), line(2, 1), line(2, 2), "{".to_owned()].concat();
        std::fs::write(&path, &torn).unwrap();
        let log = RunLog::of_next_pass(Some(log), folder.path(), 1, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), torn);
        let log = RunLog::of_next_pass(Some(log), folder.path(), 2, 1).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line(0, 1) + &line(2, 1));
        let other = tempfile::tempdir().unwrap();
        RunLog::of_next_pass(Some(log), other.path(), 3, 0).unwrap();
        assert!(other.path().join("log.jsonl").exists());
    }

    #[test]
    fn the_text_of_a_line_is_fixed() {
        let record = |loss: f32, norm: Option<f32>| {
            let record =
                StepRecord { loss: f64::from(loss), grad_norm: norm.map(f64::from), learning_rate: norm.map(|_| 1e-4) };
            serde_json::to_value(record).unwrap()
        };
        let train = Map::from_iter([("b".to_owned(), record(0.1, Some(2.5))), ("a".to_owned(), record(3.0, None))]);
        let mut line = LogLine { pass: 0, step: 3, tokens: 70, train, validation: Map::new() };
        let expected = r#"{"pass":0,"step":3,"tokens":70,"train":{"b":{"loss":0.10000000149011612,"grad_norm":2.5,"learning_rate":0.0001},"a":{"loss":3.0,"grad_norm":null,"learning_rate":null}}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), format!("{expected}}}"));
        line.validation.insert("a".to_owned(), f64::from(0.2f32).into());
        let validation = r#","validation":{"a":0.20000000298023224}}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), format!("{expected}{validation}"));
    }
}
