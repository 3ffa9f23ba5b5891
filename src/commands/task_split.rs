//! `task split`: data files into one file for each value of a column.

use crate::args::usage::{self, count, usage_error};
use crate::command_context::CommandContext;
use crate::hub::dataset_files;
use crate::output::console::make_folder;
use crate::output::text_table::table;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_fit::pluralize;
use lorakit_format::atomic::write_file;
use lorakit_task::RowsByColumn;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The arguments of `task split`.
#[derive(Args, Debug)]
pub struct TaskSplitArgs {
    /// Data files, folders of them, or hub:datasets/ORG/NAME[@REV][:CONFIG]
    #[arg(required = true, value_name = "FILE")]
    sources: Vec<String>,
    /// Column whose values become files
    #[arg(long, value_name = "COLUMN")]
    by: String,
    /// Keep at most N rows of each value, a random sample that does not depend on the order of the files. They are held in
    /// memory
    #[arg(long, value_name = "N", value_parser = count)]
    max_rows: Option<NonZeroUsize>,
    /// Keep only rows with one of these values in a column; of several columns, all must match
    #[arg(long, num_args = 1.., value_name = "COLUMN=VALUE,...", value_parser = condition)]
    only: Vec<(String, Vec<String>)>,
    /// Values that get no file
    #[arg(long, num_args = 1.., value_name = "VALUE")]
    drop: Vec<String>,
    /// Folder for the files, VALUE.jsonl; characters of VALUE other than letters, digits and _ become _
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A column with the values that are kept.
fn condition(text: &str) -> Result<(String, Vec<String>), String> {
    let (column, values) = text.split_once('=').ok_or("expected COLUMN=VALUE,...")?;
    Ok((column.to_owned(), values.split(',').map(str::to_owned).collect()))
}

/// Reads the files one after the other, and writes those of the values.
pub fn run(args: &TaskSplitArgs, context: &CommandContext) -> Result<()> {
    let limit = args.max_rows.map_or(usize::MAX, NonZeroUsize::get);
    let mut only: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (column, values) in &args.only {
        only.entry(column.clone()).or_default().extend(values.iter().cloned());
    }
    let mut rows = RowsByColumn::new(&args.by, limit, only);
    for file in files(&args.sources, context)? {
        context.output.status(format!("reading {}", file.display()));
        rows.add(&file)?;
    }
    let tasks = tasks(rows, &args.by, &args.drop)?;
    ensure!(!tasks.is_empty(), "no row is left; see --only and --drop");
    make_folder(&args.out)?;
    for (name, lines) in &tasks {
        write_file(&args.out.join(format!("{name}.jsonl")), (lines.join("\n") + "\n").as_bytes())?;
    }
    let document: Map<String, Value> = tasks.iter().map(|(name, lines)| (name.clone(), json!(lines.len()))).collect();
    context.output.result(&json!({ "out": args.out, "rows": document }), || {
        let total: usize = tasks.values().map(Vec::len).sum();
        let line = |(name, lines): (&String, &Vec<String>)| vec![name.clone(), lines.len().to_string()];
        let rows = table(["task", "rows"], tasks.iter().map(line));
        let (tasks, total) = (pluralize(tasks.len(), "task"), pluralize(total, "row"));
        format!("{rows}\n\n{tasks} with {total} in {}", args.out.display())
    })
}

/// The lines of each task by its file's name, without the dropped ones.
fn tasks(rows: RowsByColumn, column: &str, drop: &[String]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut tasks: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for (value, lines) in rows.into_lines() {
        let name = file_name(&value);
        if drop.contains(&value) || drop.contains(&name) {
            continue;
        }
        usage::ensure(!name.is_empty(), || {
            format!("a row has the empty text in `{column}`, which is no file name; leave such rows out with --drop ''")
        })?;
        if let Some((other, _)) = tasks.insert(name.clone(), (value.clone(), lines)) {
            return Err(usage_error(format!("`{value}` and `{other}` would both be {name}.jsonl; --drop one of them")));
        }
    }
    Ok(tasks.into_iter().map(|(name, (_, lines))| (name, lines)).collect())
}

/// The data files, in order.
fn files(sources: &[String], context: &CommandContext) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in sources {
        match source.strip_prefix("hub:datasets/") {
            Some(dataset) => {
                let found = dataset_files::fetch(dataset, context)?;
                files.extend([found.train, found.validation, found.test].concat());
            }
            None if Path::new(source).is_dir() => {
                let entries = std::fs::read_dir(source).with_context(|| format!("{source}: cannot be read"))?;
                let mut found = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
                found.retain(|path| path.is_file());
                found.sort();
                files.extend(found);
            }
            None => files.push(source.into()),
        }
    }
    Ok(files)
}

/// The value as a file name, as the paper's code makes it of a Flan task's name.
fn file_name(value: &str) -> String {
    value.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '_' }).collect()
}
