//! The document of a prompt and its texts, and files of them.

use crate::generation::prompt_row::PromptRow;
use crate::output::console::make_parent;
use anyhow::{Context as _, Result, ensure};
use lorakit_eval::GeneratedText;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The keys that [`document`] adds.
const KEYS: [&str; 4] = ["text", "texts", "tokens", "finish"];

/// The fields of a row with its text, its number of tokens and why it ended; with lists of them if there are several texts.
pub fn document(row: &PromptRow, generated: &[GeneratedText]) -> Map<String, Value> {
    let mut fields = row.fields.clone();
    let mut add = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    if let [one] = generated {
        add("text", json!(one.text));
        add("tokens", json!(one.tokens));
        add("finish", json!(one.finish));
        return fields;
    }
    let list = |value: fn(&GeneratedText) -> Value| Value::Array(generated.iter().map(value).collect());
    add("texts", list(|text| json!(text.text)));
    add("tokens", list(|text| json!(text.tokens)));
    add("finish", list(|text| json!(text.finish)));
    fields
}

/// Refuses rows with a field that [`document`] would replace.
pub fn ensure_new_keys(rows: &[PromptRow]) -> Result<()> {
    for row in rows {
        let taken = KEYS.iter().find(|key| row.fields.contains_key(**key));
        ensure!(
            taken.is_none(),
            "{}: the field `{}` would be replaced by a generated one; rename it",
            row.place,
            taken.unwrap_or(&"")
        );
    }
    Ok(())
}

/// A file of JSON lines, one per row. It is written as rows are finished, so that an interruption keeps them.
pub struct GeneratedRows {
    path: PathBuf,
    file: File,
}

impl GeneratedRows {
    /// Creates the file, or replaces it.
    pub fn create(path: &Path) -> Result<Self> {
        make_parent(path)?;
        let file = File::create(path).with_context(|| format!("{}: cannot be created", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes rows, each with its `samples` texts.
    pub fn write(&mut self, rows: &[PromptRow], generated: &[GeneratedText], samples: usize) -> Result<()> {
        let mut lines = String::new();
        for (row, texts) in rows.iter().zip(generated.chunks(samples)) {
            lines.push_str(&serde_json::to_string(&document(row, texts))?);
            lines.push('\n');
        }
        self.file.write_all(lines.as_bytes()).with_context(|| format!("{}: cannot be written", self.path.display()))
    }
}
