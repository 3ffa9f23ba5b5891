//! The document of a prompt and its texts, and files of them.

use crate::generation::prompt_row::PromptRow;
use crate::output::console::make_parent;
use anyhow::{Context as _, Result, ensure};
use lorakit_eval::GeneratedText;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
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

/// A file of JSON lines, one per row in order. A row is written as soon as it and all before it are finished, so that an
/// interruption keeps them.
pub struct GeneratedRows<'a> {
    path: PathBuf,
    file: File,
    rows: &'a [PromptRow],
    /// The number of texts of a row.
    samples: usize,
    /// The texts that are finished and not yet written.
    finished: BTreeMap<usize, GeneratedText>,
    /// The number of the row that is written next.
    next: usize,
    /// Whether what the file held before has been replaced.
    is_replaced: bool,
}

impl<'a> GeneratedRows<'a> {
    /// Opens the file, or creates it. What it holds is replaced when the first row is written, so that it is kept if no text
    /// can be generated.
    pub fn open(path: &Path, rows: &'a [PromptRow], samples: usize) -> Result<Self> {
        make_parent(path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("{}: cannot be created", path.display()))?;
        Ok(Self { path: path.to_owned(), file, rows, samples, finished: BTreeMap::new(), next: 0, is_replaced: false })
    }

    /// Adds the text `index`, and writes the rows that are finished by it.
    pub fn add(&mut self, index: usize, text: &GeneratedText) -> Result<()> {
        self.finished.insert(index, text.clone());
        while self.next_is_finished() {
            self.write_next()?;
        }
        Ok(())
    }

    /// Writes the finished rows behind one that has failed. Returns how many rows have failed.
    pub fn skip_failed(&mut self) -> Result<usize> {
        let mut failed = 0;
        while self.next < self.rows.len() {
            if self.next_is_finished() {
                self.write_next()?;
            } else {
                self.next += 1;
                failed += 1;
            }
        }
        Ok(failed)
    }

    /// The indices of the next row's texts.
    fn next_texts(&self) -> Range<usize> {
        self.next * self.samples..(self.next + 1) * self.samples
    }

    fn next_is_finished(&self) -> bool {
        self.next < self.rows.len() && self.finished.range(self.next_texts()).count() == self.samples
    }

    fn write_next(&mut self) -> Result<()> {
        let texts: Vec<_> = self.next_texts().filter_map(|index| self.finished.remove(&index)).collect();
        let line = serde_json::to_string(&document(&self.rows[self.next], &texts))? + "\n";
        self.next += 1;
        self.append(&line).with_context(|| format!("{}: cannot be written", self.path.display()))
    }

    fn append(&mut self, line: &str) -> std::io::Result<()> {
        if !self.is_replaced {
            // Opened again, since a pipe cannot be truncated.
            self.file = File::create(&self.path)?;
            self.is_replaced = true;
        }
        self.file.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::generation::prompt_row::Prompt;
    use lorakit_eval::FinishReason;

    #[test]
    fn rows_are_written_in_order_as_soon_as_those_before_them_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.jsonl");
        let row = |i: usize| PromptRow {
            place: i.to_string(),
            fields: Map::from_iter([("prompt".to_owned(), json!(i))]),
            prompt: Prompt::Text(i.to_string()),
        };
        let rows: Vec<PromptRow> = (0..3).map(row).collect();
        let mut file = GeneratedRows::open(&path, &rows, 2).unwrap();
        let mut add = |index: usize| {
            let text = GeneratedText { text: format!("t{index}"), tokens: 1, finish: FinishReason::Eos };
            file.add(index, &text).unwrap();
            std::fs::read_to_string(&path).unwrap().lines().count()
        };
        let written: Vec<usize> = [2, 0, 3, 1, 5, 4].into_iter().map(&mut add).collect();
        assert_eq!(written, [0, 0, 0, 2, 2, 3]);
        let last: Value =
            serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().last().unwrap()).unwrap();
        assert_eq!((&last["prompt"], &last["texts"]), (&json!(2), &json!(["t4", "t5"])));
    }
}
