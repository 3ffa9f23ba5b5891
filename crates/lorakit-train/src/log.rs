//! log.jsonl: a line per step of a run.

use crate::pass::{Pass, Step};
use anyhow::{Context, Result};
use lorakit_adapter::persist;
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
    /// beyond them, its last line perhaps half, will be logged again and is taken out.
    pub(crate) fn open(folder: &Path, pass: usize, done: usize) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", path.display())),
        };
        let stays = |line: &&str| {
            let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
            line["pass"] != json!(pass) || line["step"].as_u64().is_some_and(|step| step <= done as u64)
        };
        let kept: String = before.lines().filter(stays).flat_map(|line| [line, "\n"]).collect();
        // Written anew even where nothing goes: a link in the log's place is replaced, never written through.
        persist::write_file(&path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { file, path })
    }

    pub(crate) fn write(&mut self, pass: usize, step: &Step, experts: &[String], state: &Pass) -> Result<()> {
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
