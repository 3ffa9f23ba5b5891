//! The document of a prompt and its texts, and files of them.

use crate::generation::prompt_row::PromptRow;
use crate::output::console::make_parent;
use anyhow::{Context as _, Result, ensure};
use lorakit_eval::GeneratedText;
use lorakit_format::atomic::write_file;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, remove_file};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The keys that [`document`] adds.
const KEYS: [&str; 4] = ["text", "texts", "tokens", "finish"];

/// The fields of a row with its text, its number of tokens and why it ended; with lists of them if there are several texts.
pub fn document(row: &PromptRow, generated: &[GeneratedText]) -> Map<String, Value> {
    let mut fields = row.fields.clone();
    fields.extend(generated_fields(generated));
    fields
}

/// [`document`] as a line, with the row's own fields as its file has them where [`Value`] would write their numbers otherwise.
fn line(row: &PromptRow, generated: &[GeneratedText]) -> Result<String> {
    let added = Value::Object(generated_fields(generated)).to_string();
    let fields = row.written.as_deref().and_then(|written| written.trim().strip_suffix('}'));
    let (Some(fields), Some(added)) = (fields, added.strip_prefix('{')) else {
        return Ok(serde_json::to_string(&document(row, generated))?);
    };
    Ok(format!("{},{added}", fields.trim_end()))
}

fn generated_fields(generated: &[GeneratedText]) -> Map<String, Value> {
    let fields = if let [one] = generated {
        [("text", json!(one.text)), ("tokens", json!(one.tokens)), ("finish", json!(one.finish))]
    } else {
        let list = |value: fn(&GeneratedText) -> Value| Value::Array(generated.iter().map(value).collect());
        [
            ("texts", list(|text| json!(text.text))),
            ("tokens", list(|text| json!(text.tokens))),
            ("finish", list(|text| json!(text.finish))),
        ]
    };
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
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
/// interruption keeps them. A row that cannot be written whole leaves no part of itself, nor an empty file.
pub struct GeneratedRows<'a> {
    path: PathBuf,
    /// The file; none until its first row, unless it is a pipe, a device or a link.
    file: Option<File>,
    rows: &'a [PromptRow],
    /// The number of texts of a row.
    samples: usize,
    /// The texts that are finished and not yet written.
    finished: BTreeMap<usize, GeneratedText>,
    /// The number of the row that is written next.
    next: usize,
    /// The length of the rows that are written.
    written: u64,
}

impl<'a> GeneratedRows<'a> {
    /// Checks that the file can be written. It is created, or what it holds is replaced, when the first row is written, so
    /// that nothing changes if no text can be generated.
    pub fn open(path: &Path, rows: &'a [PromptRow], samples: usize) -> Result<Self> {
        make_parent(path)?;
        let file = open_special(path).with_context(|| format!("{}: cannot be created", path.display()))?;
        Ok(Self { path: path.to_owned(), file, rows, samples, finished: BTreeMap::new(), next: 0, written: 0 })
    }

    /// Adds the text `index`, and writes the rows that are finished by it.
    pub fn add(&mut self, index: usize, text: &GeneratedText) -> Result<()> {
        self.finished.insert(index, text.clone());
        while self.next_is_finished() {
            self.write_next()?;
        }
        Ok(())
    }

    /// Whether a row is written.
    pub fn has_rows(&self) -> bool {
        self.written > 0
    }

    /// Writes the finished rows after one that has failed. Returns how many rows have failed.
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
        let line = line(&self.rows[self.next], &texts)? + "\n";
        self.next += 1;
        if self.file.is_none() {
            write_file(&self.path, line.as_bytes())?;
        }
        self.append(&line).with_context(|| format!("{}: cannot be written", self.path.display()))
    }

    /// Appends a row, of which the first is in a new file already.
    fn append(&mut self, line: &str) -> std::io::Result<()> {
        match &mut self.file {
            None => self.file = Some(OpenOptions::new().append(true).open(&self.path)?),
            Some(file) => {
                if self.written == 0 {
                    // Opened again, since a pipe cannot be truncated.
                    *file = File::create(&self.path)?;
                }
                if let Err(error) = file.write_all(line.as_bytes()) {
                    // What is left of a row would not be JSON. The error is the write's; a pipe keeps what it got.
                    let _ = file.set_len(self.written);
                    return Err(error);
                }
            }
        }
        self.written += line.len() as u64;
        Ok(())
    }
}

/// Checks that a file can be written, and opens what is no plain file: a pipe, a device, or a link to any file.
fn open_special(path: &Path) -> std::io::Result<Option<File>> {
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => OpenOptions::new().append(true).open(path).map(|_| None),
        Ok(_) => OpenOptions::new().write(true).create(true).truncate(false).open(path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            File::create_new(path)?;
            remove_file(path).map(|()| None)
        }
        Err(error) => Err(error),
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
            written: None,
            prompt: Prompt::Text(i.to_string()),
        };
        let rows: Vec<PromptRow> = (0..3).map(row).collect();
        let mut file = GeneratedRows::open(&path, &rows, 2).unwrap();
        let mut add = |index: usize| {
            let text = GeneratedText { text: format!("t{index}"), tokens: 1, finish: FinishReason::Eos };
            file.add(index, &text).unwrap();
            std::fs::read_to_string(&path).ok().map(|text| text.lines().count())
        };
        let written = [2, 0, 3, 1, 5, 4].map(&mut add);
        assert_eq!(written, [None, None, None, Some(2), Some(2), Some(3)]);
        let last: Value =
            serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().last().unwrap()).unwrap();
        assert_eq!((&last["prompt"], &last["texts"]), (&json!(2), &json!(["t4", "t5"])));
    }

    #[test]
    #[cfg(unix)]
    fn a_link_stays_and_the_file_that_it_names_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [target, link, input] = ["target.jsonl", "link.jsonl", "in.jsonl"].map(|name| folder.path().join(name));
        std::fs::write(&target, "x".repeat(999)).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        std::fs::write(&input, "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n").unwrap();
        let rows = PromptRow::read(&input).unwrap();
        let mut file = GeneratedRows::open(&link, &rows, 1).unwrap();
        assert_eq!(std::fs::read(&target).unwrap().len(), 999, "nothing is lost before the first row");
        let text = GeneratedText { text: "c".into(), tokens: 1, finish: FinishReason::Eos };
        (0..2).for_each(|index| file.add(index, &text).unwrap());
        assert!(link.is_symlink());
        let written = std::fs::read_to_string(&target).unwrap();
        assert_eq!((written.lines().count(), written.contains("xx")), (2, false), "{written}");
    }

    #[test]
    fn numbers_are_written_as_they_were_read() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
        let own = r#"{"id": 12345678901234567890123, "p": 2.50, "prompt":"\u0061"  "#;
        std::fs::write(&input, format!(" {own}}} \n")).unwrap();
        let rows = PromptRow::read(&input).unwrap();
        assert_eq!(rows[0].fields["id"], json!("12345678901234567890123"));
        let text = GeneratedText { text: "b\n".into(), tokens: 1, finish: FinishReason::Eos };
        GeneratedRows::open(&output, &rows, 1).unwrap().add(0, &text).unwrap();
        let expected = format!("{},\"text\":\"b\\n\",\"tokens\":1,\"finish\":\"eos\"}}\n", own.trim_end());
        assert_eq!(std::fs::read_to_string(&output).unwrap(), expected);
    }
}
