//! `task split`: data files into one file for each value of a column.

use crate::args::usage::{self, count, usage_error};
use crate::command_context::CommandContext;
use crate::hub::dataset_files;
use crate::output::console::make_folder;
use crate::output::text_table::table;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_fit::pluralize;
use lorakit_format::atomic::write_file;
use lorakit_task::{DistinctRows, RowsByColumn, has_data_extension};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The arguments of `task split`.
#[derive(Args, Debug)]
#[command(after_help = "Of equal rows of a value one is kept, and the last line says how many were left out.")]
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
    /// Folder for the files, VALUE.jsonl; characters of VALUE other than letters, digits and _ become _. Files of the same
    /// names are replaced; other data files there, which would be tasks beside them, are an error
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
    refuse_other_tasks(&args.out, &tasks)?;
    for (name, rows) in &tasks {
        write_file(&args.out.join(task_file(name)), (rows.lines.join("\n") + "\n").as_bytes())?;
    }
    let document: Map<String, Value> =
        tasks.iter().map(|(name, rows)| (name.clone(), json!(rows.lines.len()))).collect();
    let duplicates: usize = tasks.values().map(|rows| rows.duplicates).sum();
    context.output.result(&json!({ "out": args.out, "rows": document, "duplicates": duplicates }), || {
        let total: usize = tasks.values().map(|rows| rows.lines.len()).sum();
        let line = |(name, rows): (&String, &DistinctRows)| vec![name.clone(), rows.lines.len().to_string()];
        let rows = table(["task", "rows"], tasks.iter().map(line));
        let (tasks, total) = (pluralize(tasks.len(), "task"), pluralize(total, "row"));
        let left_out = match duplicates {
            0 => String::new(),
            1 => "; 1 row equal to one of them was left out".to_owned(),
            _ => format!("; {duplicates} rows equal to one of them were left out"),
        };
        format!("{rows}\n\n{tasks} with {total} in {}{left_out}", args.out.display())
    })
}

fn task_file(name: &str) -> String {
    format!("{name}.jsonl")
}

/// Refuses a folder with task files that are not among those that are written, such as those of an earlier split: who trains
/// on the folder would train on them too.
fn refuse_other_tasks(folder: &Path, tasks: &BTreeMap<String, DistinctRows>) -> Result<()> {
    let written: BTreeSet<PathBuf> = tasks.keys().map(|name| folder.join(task_file(name))).collect();
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}: cannot be read", folder.display()))?;
    let mut others = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let is_data = |path: &Path| path.file_name().and_then(|name| name.to_str()).is_some_and(has_data_extension);
    others.retain(|path| is_data(path) && !written.contains(path));
    others.sort();
    let Some(first) = others.first() else { return Ok(()) };
    let more = if others.len() > 1 { format!(" and {} more", others.len() - 1) } else { String::new() };
    bail!(
        "{}{more}: not of this split, and would be tasks beside its own; move them, or use another --out",
        first.display()
    )
}

/// The rows of each task by its file's name, without the dropped ones.
fn tasks(rows: RowsByColumn, column: &str, drop: &[String]) -> Result<BTreeMap<String, DistinctRows>> {
    let mut tasks: BTreeMap<String, (String, DistinctRows)> = BTreeMap::new();
    for (value, rows) in rows.into_rows() {
        let name = file_name(&value);
        if drop.contains(&value) || drop.contains(&name) {
            continue;
        }
        usage::ensure(!name.is_empty(), || {
            format!("a row has the empty text in `{column}`, which is no file name; leave such rows out with --drop ''")
        })?;
        if let Some((other, _)) = tasks.insert(name.clone(), (value.clone(), rows)) {
            return Err(usage_error(format!("`{value}` and `{other}` would both be {name}.jsonl; --drop one of them")));
        }
    }
    Ok(tasks.into_iter().map(|(name, (_, rows))| (name, rows)).collect())
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
