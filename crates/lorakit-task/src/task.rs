//! A task: its rows, split, and what is asked of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::definition::Definition;
use crate::extract::Extract;
use crate::form::Form;
use crate::metric::Metric;
use crate::row::{Answer, Row};
use crate::source::Source;
use crate::spec;
use crate::split::{Split, canonical};
use lorakit_format::hash::hex;

/// A task: rows of text with answers, split into train, validation and test.
#[derive(Clone, Debug)]
pub struct Task {
    /// What the task is called, among experts and in results.
    pub name: String,
    /// One sentence for listings, where the task file has one.
    pub description: Option<String>,
    /// The task file or data file, as the user named it.
    pub path: PathBuf,
    /// Decides, with each row, which split it falls into.
    pub split_seed: u64,
    /// The scores asked for; [`Metric::Loss`] is always the first.
    pub metrics: Vec<Metric>,
    /// How answers are generated.
    pub generation: Generation,
    sha256: String,
    rows: Vec<(Split, Row)>,
}

/// How the answers of a task are generated and read.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Texts at which generation ends, besides EOS.
    pub stop: Vec<String>,
    /// Where generation ends at the latest, in tokens.
    pub max_new_tokens: usize,
    /// Finds the answer in what was generated and in the accepted answers (of which one that does
    /// not match counts as it stands); None: all of it is the answer.
    pub extract: Option<Extract>,
}

impl Task {
    /// Loads `[NAME=]T`: a task TOML (`FILE.toml`, or `FILE.toml:NAME,...` for some of its tasks),
    /// a JSON, JSON lines or gzipped file in a plain form, a folder of any of these, or
    /// `suite:NAME`. `data` is what `{data}` in a task TOML stands for.
    ///
    /// # Errors
    /// Where a file cannot be read, a row does not fit (the message names file, row and key), two
    /// tasks share a name, or `NAME=` is given for several tasks.
    pub fn load(spec: &str, data: Option<&Path>) -> Result<Vec<Task>> {
        let tasks = spec::load(spec, data)?;
        refuse_twins(&tasks)?;
        Ok(tasks)
    }

    /// Loads several specs, in order.
    ///
    /// # Errors
    /// As [`Task::load`]; also where two specs give tasks of one name.
    pub fn load_all(specs: &[String], data: Option<&Path>) -> Result<Vec<Task>> {
        let mut tasks = Vec::new();
        for spec in specs {
            tasks.extend(spec::load(spec, data)?);
        }
        refuse_twins(&tasks)?;
        Ok(tasks)
    }

    /// The rows of a split, in file order; the first `limit` of them.
    ///
    /// # Errors
    /// Where the split is empty: nothing should be trained on, chosen by, or averaged over no rows.
    pub fn rows(&self, split: Split, limit: Option<usize>) -> Result<Vec<&Row>> {
        let chosen = self.rows.iter().filter(|(own, _)| split == Split::All || *own == split);
        let rows: Vec<&Row> = chosen.map(|(_, row)| row).take(limit.unwrap_or(usize::MAX)).collect();
        if rows.is_empty() && limit != Some(0) {
            bail!(
                "task `{}` ({}) has no {split} rows: {}, split by hash with split_seed {} where \
                 the task gives no file for a split. Take another split, more rows, or another \
                 split_seed",
                self.name,
                self.path.display(),
                self.spread(),
                self.split_seed,
            );
        }
        Ok(rows)
    }

    /// How many rows a split has.
    pub fn count(&self, split: Split) -> usize {
        self.rows.iter().filter(|(own, _)| split == Split::All || *own == split).count()
    }

    /// True where rows have choices. All rows of a task are of one kind.
    pub fn has_choices(&self) -> bool {
        self.rows.first().is_some_and(|(_, row)| row.choices().is_some())
    }

    /// The hash of what the task teaches, in hexadecimal: for a plain file what `sha256sum` prints,
    /// for a task of a TOML the hash of its templates and of its data files' contents. Names,
    /// paths, metrics and `split_seed` are not in it.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    fn spread(&self) -> String {
        let [train, validation, test] = [Split::Train, Split::Validation, Split::Test].map(|split| self.count(split));
        format!("its {} rows are {train} train, {validation} validation, {test} test", self.rows.len())
    }

    /// A task of generated `(input, output)` rows, in the plain form. `path` is the spec that generates it again, and
    /// the hash that of the rows as a file of JSON lines.
    pub(crate) fn generated(name: &str, description: &str, path: PathBuf, rows: &[(String, String)]) -> Task {
        let mut hash = Sha256::new();
        let mut of = |(at, (input, output)): (usize, &(String, String))| {
            let text = |text: &String| Value::String(text.clone());
            let fields = Map::from_iter([("input".into(), text(input)), ("output".into(), text(output))]);
            hash.update(canonical(&Value::Object(fields.clone())));
            hash.update("\n");
            let row = Row {
                number: at + 1,
                fields,
                prompt: format!("{input}\n"),
                delimiter: String::new(),
                answer: Answer::Text(vec![output.clone()]),
            };
            (Split::of(&row.fields, 0), row)
        };
        let rows = rows.iter().enumerate().map(&mut of).collect();
        Task {
            name: name.into(),
            description: Some(description.into()),
            path,
            split_seed: 0,
            metrics: vec![Metric::Loss, Metric::ExactMatch],
            generation: Generation { stop: Vec::new(), max_new_tokens: 24, extract: None },
            sha256: hex(&hash.finalize()),
            rows,
        }
    }

    /// Builds the task that a definition describes. `path` is the file it stands in.
    pub(crate) fn build(definition: &Definition, path: &Path, data: Option<&Path>) -> Result<Task> {
        let name = definition.name.clone().unwrap_or_else(|| spec::stem(path));
        let task = Task::assemble(definition, &name, path, data);
        if spec::is_toml(path) {
            return task.with_context(|| format!("task `{name}` of {}", path.display()));
        }
        // The file of a plain task is its data file, which the message names already.
        task
    }

    fn assemble(definition: &Definition, name: &str, path: &Path, data: Option<&Path>) -> Result<Task> {
        definition.validate()?;
        let form = Form::new(definition)?;
        let sources = sources(definition, name, path, data)?;
        let split_seed = definition.split_seed.unwrap_or(0);
        let mut rows = Vec::new();
        for (own, source) in &sources {
            let place = || source.path.display().to_string();
            for row in read_rows(definition, &form, source).with_context(place)? {
                refuse_mixture(&row, rows.first()).with_context(place)?;
                let split = own.unwrap_or_else(|| split_of(definition, &row, split_seed));
                rows.push((split, row));
            }
        }
        let choices = rows.first().is_some_and(|(_, row)| row.choices().is_some());
        Ok(Task {
            name: name.into(),
            description: definition.description.clone(),
            path: path.into(),
            split_seed,
            metrics: metrics(definition, choices)?,
            generation: generation(definition)?,
            sha256: sha256(definition, &sources),
            rows,
        })
    }
}

/// The data files, each with the split it is for; None: split by hash.
fn sources(
    definition: &Definition,
    name: &str,
    path: &Path,
    data: Option<&Path>,
) -> Result<Vec<(Option<Split>, Source)>> {
    let files = definition.files(name, path, data)?;
    files.into_iter().map(|(split, file)| Ok((split, Source::read(&file)?))).collect()
}

fn read_rows(definition: &Definition, form: &Form, source: &Source) -> Result<Vec<Row>> {
    let beside = match &definition.instruction_at {
        Some(at) => Some(source.text_at(at).context("`instruction_at`")?),
        None => definition.instruction.clone(),
    };
    let rows = source.rows(definition.rows_at.as_deref())?;
    let row = |(i, fields)| form.row(i + 1, fields, beside.as_deref()).with_context(|| format!("row {}", i + 1));
    rows.into_iter().enumerate().map(row).collect()
}

/// A row's split by hash. Where that split has a file of its own, the row is for training: nothing
/// of a task is thrown away, and nothing is added to a published test set.
fn split_of(definition: &Definition, row: &Row, split_seed: u64) -> Split {
    match Split::of(&row.fields, split_seed) {
        Split::Validation if definition.validation.is_some() => Split::Train,
        Split::Test if definition.test.is_some() => Split::Train,
        split => split,
    }
}

fn metrics(definition: &Definition, choices: bool) -> Result<Vec<Metric>> {
    let asked = match &definition.metrics {
        Some(asked) => asked.as_slice(),
        None if choices => &[Metric::Acc, Metric::AccNorm, Metric::AccTok],
        None => &[Metric::ExactMatch, Metric::RougeL],
    };
    let mut metrics = vec![Metric::Loss];
    for &metric in asked {
        if metric.needs_choices() && !choices {
            bail!("`metrics`: {metric} compares choices, and the rows have none");
        }
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    Ok(metrics)
}

fn generation(definition: &Definition) -> Result<Generation> {
    let stop = definition.stop.clone().unwrap_or_default();
    if stop.iter().any(String::is_empty) {
        bail!("`stop`: an empty text would end every generation before it begins");
    }
    Ok(Generation {
        stop,
        max_new_tokens: definition.max_new_tokens.unwrap_or(64),
        extract: definition.extract.as_deref().map(Extract::new).transpose()?,
    })
}

fn sha256(definition: &Definition, sources: &[(Option<Split>, Source)]) -> String {
    let identity = serde_json::to_value(definition.identity()).unwrap_or_default();
    if let ([(None, source)], "{}") = (sources, canonical(&identity).as_str()) {
        return source.sha256.clone();
    }
    let mut hash = Sha256::new();
    hash.update(canonical(&identity));
    for (split, source) in sources {
        let part = split.map_or("rows", Split::name);
        hash.update(format!("\n{part} {}", source.sha256));
    }
    hex(&hash.finalize())
}

/// Metrics hold for a whole task, so its rows must be of one kind.
fn refuse_mixture(row: &Row, first: Option<&(Split, Row)>) -> Result<()> {
    match first {
        Some((_, first)) if first.choices().is_some() != row.choices().is_some() => bail!(
            "row {} {} choices, unlike the task's first; a task is all of one kind",
            row.number,
            if row.choices().is_some() { "has" } else { "has no" },
        ),
        _ => Ok(()),
    }
}

/// Names key experts and results, so they must differ.
fn refuse_twins(tasks: &[Task]) -> Result<()> {
    let mut seen: BTreeMap<&str, &Path> = BTreeMap::new();
    for task in tasks {
        if let Some(other) = seen.insert(&task.name, &task.path) {
            bail!(
                "two tasks are named `{}`: {} and {}. Give one of them another name: NAME=FILE",
                task.name,
                other.display(),
                task.path.display()
            );
        }
    }
    Ok(())
}
