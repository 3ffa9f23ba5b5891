//! What the user sees: results on stdout, as tables or as one JSON document; notices and errors on stderr.

use crate::interrupt::{self, Interrupted};
use crate::usage::{self, Usage};
use anyhow::{Context as _, Error, Result};
use comfy_table::{CellAlignment, ColumnConstraint, LineStyle, Table, TableStyle, Width};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

pub use lorakit_fit::pluralize as counted;

/// How results and notices reach the user.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether results are one JSON document.
    pub json: bool,
    /// Whether progress is left out.
    pub quiet: bool,
    /// Whether more is said on stderr.
    pub verbose: bool,
}

impl Output {
    /// Prints a command's result: the document under `--json`, else what `human` makes of it.
    pub fn result(&self, document: &impl Serialize, human: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(document)? } else { human() };
        self.raw(&format!("{}\n", text.trim_end_matches('\n')))
    }

    /// Writes to stdout as it stands, at once: for text that grows while the user reads it.
    pub fn raw(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Tells something that the user should know beside the result.
    pub fn notice(&self, text: impl Display) {
        // Nobody is told that telling failed.
        let _ = writeln!(io::stderr().lock(), "note: {text}");
    }

    /// Tells how things go, unless progress is unwanted.
    pub fn status(&self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Tells what only the curious want to know.
    pub fn detail(&self, text: impl Display) {
        if self.verbose {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// Makes the folder that a file or folder is to be written in, where there is none.
pub fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => {
            std::fs::create_dir_all(parent).with_context(|| format!("{}: cannot be made", parent.display()))
        }
        None => Ok(()),
    }
}

/// Reports why a command ended early, with all its causes, and how the process is to end.
pub fn failure(error: &Error) -> ExitCode {
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == ErrorKind::BrokenPipe) {
        // Whoever read our stdout has seen enough, as `head` has.
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    if let Some(Interrupted(message)) = error.downcast_ref() {
        let _ = writeln!(stderr, "interrupted: {message}");
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    let _ = writeln!(stderr, "error: {error:#}");
    if error.is::<Usage>() { ExitCode::from(usage::EXIT_CODE) } else { ExitCode::FAILURE }
}

/// A table with a line under its header; columns of numbers stand to the right, long texts are wrapped.
pub fn table<C: Into<String>>(
    header: impl IntoIterator<Item = C>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    table.add_rows(rows.clone());
    for (index, column) in table.column_iter_mut().enumerate() {
        if rows.iter().filter_map(|row| row.get(index)).all(|cell| is_number(cell)) {
            column.set_cell_alignment(CellAlignment::Right);
        } else {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(WIDEST_TEXT)));
        }
    }
    table.trim_fmt()
}

/// Characters in a line of a cell that is no number.
const WIDEST_TEXT: u16 = 72;

fn is_number(cell: &str) -> bool {
    cell == ABSENT || cell.chars().all(|c| c.is_ascii_digit() || "+-.e %±KMGiB".contains(c))
}

/// What stands where there is no value.
pub const ABSENT: &str = "–";

/// A line of `--help` that is as long as it needs to be: what is typed, and below it what that does.
pub fn entry(typed: &str, what: &str) -> String {
    format!("  {typed}\n      {what}")
}

/// A value with `digits` behind the point, or the sign of none.
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| format!("{value:.digits$}"))
}

/// Bytes in the unit that suits them.
pub fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| count >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", count as f64 / f64::from(1u32 << shift)),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_numbers_stand_to_the_right() {
        let rows = [vec!["a".to_owned(), "1.50".to_owned()], vec!["bcd".to_owned(), ABSENT.to_owned()]];
        let text = table(["name", "loss"], rows);
        assert!(text.lines().any(|line| line.contains(" bcd      –")), "{text}");
    }

    #[test]
    fn long_texts_are_wrapped() {
        let text = table(["name", "members"], [vec!["a".to_owned(), "member ".repeat(40)]]);
        assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_suits_them() {
        assert_eq!((bytes(12).as_str(), bytes(1536).as_str(), bytes(5 << 30).as_str()), ("12 B", "1.5 KiB", "5.0 GiB"));
    }
}
