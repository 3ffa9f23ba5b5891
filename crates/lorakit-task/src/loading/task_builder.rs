//! From a task's config to the task: reads its data files, renders its rows and splits them.

use std::path::Path;

use lorakit_format::hash::sha256;

use crate::answer_comparison::AnswerComparison;
use crate::answer_pattern::AnswerPattern;
use crate::column_names::ColumnNames;
use crate::error::{At, Result, TaskError};
use crate::json_value::canonical;
use crate::loading::split_files::{SplitFile, SplitFiles};
use crate::loading::task_config::TaskConfig;
use crate::loading::task_files::{is_toml, stem};
use crate::metric::Metric;
use crate::row::{Row, RowKind};
use crate::row_format::reader::RowReader;
use crate::source::data_file::DataFile;
use crate::split::Split;
use crate::task::{FewShotTexts, GenerationConfig, Task};

/// Builds a task. `path` is the task TOML or data file; `data` replaces `{data}` in the TOML.
pub(crate) fn build(config: &TaskConfig, path: &Path, data: Option<&Path>) -> Result<Task> {
    let name = config.name.clone().unwrap_or_else(|| stem(path));
    let task = assemble(config, &name, path, data);
    if is_toml(path) {
        return task.at(|| format!("task `{name}` of {}", path.display()));
    }
    // Without a TOML the file is the data file, which the message names already.
    task
}

/// Builds a task of downloaded files; `path` is what the user typed.
pub(crate) fn build_of_files(files: &SplitFiles, path: &Path, columns: &ColumnNames) -> Result<Task> {
    let config = TaskConfig { columns: columns.clone(), ..TaskConfig::of_data_file(path) };
    let read = |(split, file): SplitFile| Ok((split, DataFile::read(&file)?));
    let read = files.by_split().into_iter().map(read).collect::<Result<_>>()?;
    assemble_files(&config, &files.name, path, read)
}

fn assemble(config: &TaskConfig, name: &str, path: &Path, data: Option<&Path>) -> Result<Task> {
    config.validate()?;
    assemble_files(config, name, path, read_files(config, name, path, data)?)
}

fn assemble_files(config: &TaskConfig, name: &str, path: &Path, files: Vec<(Option<Split>, DataFile)>) -> Result<Task> {
    let reader = RowReader::new(config)?;
    let split_seed = config.split_seed.unwrap_or(0);
    let (mut rows, mut warnings, mut undesired) = (Vec::<(Split, Row)>::new(), Vec::new(), 0);
    for (own, file) in &files {
        let place = || file.path.display().to_string();
        for row in read_rows(config, &reader, file).at(place)? {
            let Some(row) = row else {
                undesired += 1;
                continue;
            };
            refuse_mixture(&row, rows.first()).at(place)?;
            let split = own.unwrap_or_else(|| split_of(&files, &row, split_seed));
            rows.push((split, row));
        }
    }
    warnings.extend(left_out(undesired, rows.len()).at(|| path.display().to_string())?);
    if let Some((_, row)) = rows.first() {
        warnings.extend(reader.warnings(&row.fields));
    }
    Ok(Task {
        name: name.into(),
        description: config.description.clone(),
        path: path.into(),
        split_seed,
        columns: ColumnNames::default(),
        metrics: metrics(config, rows.first().map(|(_, row)| row))?,
        generation: generation(config)?,
        few_shot: few_shot(config),
        warnings,
        sha256: hash(config, &files),
        rows,
    })
}

/// The data files, each with the split it is for; None: split by hash.
fn read_files(
    config: &TaskConfig,
    name: &str,
    path: &Path,
    data: Option<&Path>,
) -> Result<Vec<(Option<Split>, DataFile)>> {
    let files = config.files(name, path, data)?;
    files.into_iter().map(|(split, file)| Ok((split, DataFile::read(&file)?))).collect()
}

/// What is said of rows that were not to be learned; an error if there are no others.
fn left_out(undesired: usize, others: usize) -> Result<Option<String>> {
    match (undesired, others) {
        (0, _) => Ok(None),
        (_, 0) => Err(TaskError::Data(
            "no row is left: the `label` or `kto_tag` of each is false or 0, so that its completion is not desired"
                .to_owned(),
        )),
        _ => Ok(Some(format!(
            "{undesired} of {} rows are left out: their `label` or `kto_tag` is false or 0, so that their completions are not desired",
            undesired + others
        ))),
    }
}

/// The rows of a file; None for one that is not to be learned.
fn read_rows(config: &TaskConfig, reader: &RowReader, file: &DataFile) -> Result<Vec<Option<Row>>> {
    let instruction = match &config.instruction_at {
        Some(at) => Some(file.document.text_at(at).at(|| "`instruction_at`")?),
        None => config.instruction.clone(),
    };
    let rows = file.document.rows(config.rows_at.as_deref())?;
    let may_contain_rows = file.document.may_contain_rows(config.rows_at.as_deref());
    let place = |number: usize, error: &TaskError| match may_contain_rows && lacks_columns(error) {
        false => format!("row {number}"),
        true => {
            "the file is one JSON object and read as one row (rows inside it need a task TOML with `rows_at`)".into()
        }
    };
    let undesired = reader.undesired(&rows);
    let row = |(i, row): (usize, _)| {
        if undesired[i] {
            return Ok(None);
        }
        let read = reader.read(i + 1, row, instruction.as_deref());
        read.map(Some).map_err(|error| {
            let place = place(i + 1, &error);
            error.at(place)
        })
    };
    rows.into_iter().enumerate().map(row).collect()
}

/// Whether a row has not the columns that are read.
fn lacks_columns(error: &TaskError) -> bool {
    match error {
        TaskError::Context { source, .. } => lacks_columns(source),
        TaskError::MissingColumn { .. } | TaskError::Render(_) => true,
        _ => false,
    }
}

/// A row's split by hash. If that split has a file of its own, the row is for training: no row is dropped, and none is added
/// to a published test set.
fn split_of(files: &[(Option<Split>, DataFile)], row: &Row, split_seed: u64) -> Split {
    let split = Split::of(&row.fields, split_seed);
    if files.iter().any(|(own, _)| *own == Some(split)) { Split::Train } else { split }
}

/// The metrics of a task whose rows are of one kind, that of its first.
fn metrics(config: &TaskConfig, first: Option<&Row>) -> Result<Vec<Metric>> {
    let choices = first.is_some_and(|row| row.choices().is_some());
    let text = first.is_some_and(|row| row.kind == RowKind::Text);
    let asked = match &config.metrics {
        Some(asked) => asked.as_slice(),
        None if text => &[],
        None if choices => &[Metric::Acc, Metric::AccNorm, Metric::AccTok],
        None => &[Metric::ExactMatch, Metric::RougeL],
    };
    let mut metrics = vec![Metric::Loss];
    for &metric in asked {
        if metric.needs_choices() && !choices {
            return Err(TaskError::Config(format!("`metrics`: {metric} compares choices, and the rows have none")));
        }
        if metric.needs_generation() && text {
            return Err(TaskError::Config(format!(
                "`metrics`: {metric} compares answers, and rows of `text` have none"
            )));
        }
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    Ok(metrics)
}

fn generation(config: &TaskConfig) -> Result<GenerationConfig> {
    let stop = config.stop.clone().unwrap_or_default();
    if stop.iter().any(String::is_empty) {
        return Err(TaskError::Config(
            "`stop` has an empty text, which would stop every generation at once".to_string(),
        ));
    }
    Ok(GenerationConfig {
        stop,
        max_new_tokens: config.max_new_tokens.unwrap_or(64),
        extract: config.extract.as_deref().map(AnswerPattern::new).transpose()?,
        comparison: AnswerComparison::new(
            config.ignore_case.unwrap_or(false),
            config.regexes_to_ignore.as_deref().unwrap_or_default(),
            config.tolerance,
        )?,
    })
}

fn few_shot(config: &TaskConfig) -> FewShotTexts {
    let defaults = FewShotTexts::default();
    FewShotTexts {
        description: config.fewshot_description.clone().unwrap_or(defaults.description),
        delimiter: config.fewshot_delimiter.clone().unwrap_or(defaults.delimiter),
    }
}

/// The task's hash, see [`Task::sha256`].
fn hash(config: &TaskConfig, files: &[(Option<Split>, DataFile)]) -> String {
    let mut text = canonical(&serde_json::to_value(config.identity()).unwrap_or_default());
    if let ([(None, file)], "{}") = (files, text.as_str()) {
        return file.sha256.clone();
    }
    for (split, file) in files {
        let key = split.map_or("rows", Split::name);
        text.push_str(&format!("\n{key} {}", file.sha256));
    }
    sha256(text.as_bytes())
}

/// Metrics apply to a whole task, so either all rows have choices or none, and all are texts or none.
fn refuse_mixture(row: &Row, first: Option<&(Split, Row)>) -> Result<()> {
    match first {
        Some((_, first)) if first.choices().is_some() != row.choices().is_some() => Err(TaskError::Row(format!(
            "row {} {} choices, unlike the task's first; expected rows of one kind",
            row.number,
            if row.choices().is_some() { "has" } else { "has no" },
        ))),
        Some((_, first)) if (first.kind == RowKind::Text) != (row.kind == RowKind::Text) => {
            Err(TaskError::Row(format!(
                "row {} is {}, unlike the task's first; expected rows of one kind",
                row.number,
                if row.kind == RowKind::Text { "a text" } else { "no text alone" },
            )))
        }
        _ => Ok(()),
    }
}
