//! log.jsonl: a line per step of a run.

use crate::pass::{Pass, StepOutput};
use anyhow::{Context, Result};
use lorakit_format::atomic;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log of a run, open at its end.
pub(crate) struct Log {
    file: std::fs::File,
    path: PathBuf,
}

impl Log {
    /// Opens the log of the run in `folder` for a pass that goes on after `done` steps. What a killed process logged
    /// beyond them, its last line perhaps half a character short, will be logged again and is taken out.
    pub(crate) fn open(folder: &Path, pass: usize, done: usize) -> Result<Self> {
        let path = folder.join("log.jsonl");
        // Bytes: a line that ends within a character is no text, and must not take those before it along.
        let before = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", path.display())),
        };
        let stays = |line: &&[u8]| {
            let Ok(line) = serde_json::from_slice::<Value>(line) else { return false };
            line["pass"] != json!(pass) || line["step"].as_u64().is_some_and(|step| step <= done as u64)
        };
        let kept: Vec<&[u8]> =
            before.split(|byte| *byte == b'\n').filter(stays).flat_map(|line| [line, b"\n"]).collect();
        // Written anew even where nothing goes: a link in the log's place is replaced, never written through.
        atomic::write_file(&path, &kept.concat())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { file, path })
    }

    pub(crate) fn write(&mut self, pass: usize, step: &StepOutput, experts: &[String], state: &Pass) -> Result<()> {
        let losses: serde_json::Map<String, Value> = experts
            .iter()
            .zip(&step.losses)
            .enumerate()
            .filter_map(|(e, (name, loss))| {
                Some((name.clone(), json!({ "loss": (*loss)?, "grad_norm": state.progress()[e].norms.last() })))
            })
            .collect();
        let validated: serde_json::Map<String, Value> =
            step.validated.iter().map(|&(e, loss)| (experts[e].clone(), json!(loss))).collect();
        let mut line = json!({ "pass": pass, "step": step.step, "tokens": step.tokens, "train": losses });
        if !validated.is_empty() {
            line["validation"] = Value::Object(validated);
        }
        // One write: a line is not torn by another process, and rarely by a kill.
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("{}: cannot be written", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_that_a_kill_tore_goes_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line =
            |pass: usize, step: u64| format!("{}\n", json!({ "pass": pass, "step": step, "train": { "ärger": 1 } }));
        let whole = [line(0, 9), line(1, 1), line(1, 2)].concat();
        let torn = line(1, 2);
        for cut in 0..torn.len() {
            std::fs::write(&path, [whole.as_bytes(), &torn.as_bytes()[..cut]].concat()).unwrap();
            Log::open(folder.path(), 1, 1).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), line(0, 9) + &line(1, 1), "torn at {cut}");
        }
    }
}
