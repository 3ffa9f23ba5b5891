//! What a user types after `--tasks`: `[NAME=]T`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::column_names::ColumnNames;
use crate::error::{At, Result, TaskError};
use crate::loading::dataset_folder;
use crate::loading::split_files::SplitFiles;
use crate::loading::suite::Suite;
use crate::loading::task_builder::{build, build_of_files};
use crate::loading::task_config::TaskConfig;
use crate::loading::task_files::{is_toml, list, stem};
use crate::source::data_file::read_whole;
use crate::source::file_formats::endings;
use crate::task::Task;

impl Task {
    /// Loads `[NAME=]T`: a task TOML (`FILE.toml`, or `FILE.toml:NAME,...` for some of its tasks), a data file whose rows
    /// are of a known format, a folder that `datasets` saved or whose files are named after splits, a folder of any of
    /// these, or `suite:NAME`. `data` replaces `{data}` in a task TOML.
    ///
    /// # Errors
    /// If a file cannot be read, a row does not fit (the message names file, row and column), two tasks have one name, or
    /// `NAME=` is given for several tasks.
    pub fn load(spec: &str, data: Option<&Path>) -> Result<Vec<Task>> {
        Task::load_all(&[spec.to_string()], data)
    }

    /// Loads several specs, in order.
    ///
    /// # Errors
    /// As [`Task::load`]; also if two specs give tasks of one name.
    pub fn load_all(specs: &[String], data: Option<&Path>) -> Result<Vec<Task>> {
        Task::load_renamed(specs, data, &ColumnNames::default())
    }

    /// Loads several specs, in order. `columns` stand for the standard columns where a task TOML does not say so itself.
    ///
    /// # Errors
    /// As [`Task::load_all`]; also if a row lacks one of the columns.
    pub fn load_renamed(specs: &[String], data: Option<&Path>, columns: &ColumnNames) -> Result<Vec<Task>> {
        Task::load_downloaded(specs, data, columns, &BTreeMap::new())
    }

    /// As [`Task::load_renamed`], where a spec may also name one of `downloads` as its source.
    ///
    /// # Errors
    /// As [`Task::load_renamed`].
    pub fn load_downloaded(
        specs: &[String],
        data: Option<&Path>,
        columns: &ColumnNames,
        downloads: &BTreeMap<String, SplitFiles>,
    ) -> Result<Vec<Task>> {
        let from = Origin { data, columns, downloads };
        let mut tasks = Vec::new();
        for spec in specs {
            tasks.extend(load(spec, from)?);
        }
        for task in &mut tasks {
            task.columns = columns.clone();
        }
        refuse_duplicates(&tasks)?;
        Ok(tasks)
    }

    /// The source in `[NAME=]SOURCE`.
    ///
    /// # Errors
    /// If the spec has another form.
    pub fn source_of(spec: &str) -> Result<&str> {
        Ok(split_name(spec)?.1)
    }
}

/// What task files leave open.
#[derive(Clone, Copy)]
struct Origin<'a> {
    /// What `{data}` stands for.
    data: Option<&'a Path>,
    columns: &'a ColumnNames,
    /// Files of sources that are not on disk under their own names.
    downloads: &'a BTreeMap<String, SplitFiles>,
}

fn load(spec: &str, from: Origin<'_>) -> Result<Vec<Task>> {
    let (name, source) = split_name(spec)?;
    let mut tasks = load_source(source, from)?;
    match (name, tasks.as_mut_slice()) {
        (None, _) => Ok(tasks),
        (Some(name), [task]) => {
            task.name = name.into();
            Ok(tasks)
        }
        (Some(name), several) => Err(TaskError::Spec(format!(
            "`{name}=` names one task, and {source} has {}: leave it out, or give a single task",
            several.len()
        ))),
    }
}

/// Splits off `NAME=`. A path may contain an equals sign: a spec that exists as a path is one.
fn split_name(spec: &str) -> Result<(Option<&str>, &str)> {
    match spec.split_once('=') {
        Some((name, source)) if !Path::new(spec).exists() && !name.contains(['/', '\\']) => {
            if name.is_empty() || source.is_empty() {
                return Err(TaskError::Spec(format!("`{spec}` is not [NAME=]TASK")));
            }
            Ok((Some(name), source))
        }
        Some((name, source)) if !Path::new(spec).exists() && Path::new(source).exists() => {
            Err(TaskError::Spec(format!(
                "`{spec}`: `{name}` cannot name a task; expected a name without `/` and `\\`, since experts and result files \
             are named after it"
            )))
        }
        _ if spec.is_empty() => Err(TaskError::Spec("an empty text names no task".to_string())),
        _ => Ok((None, spec)),
    }
}

fn load_source(source: &str, from: Origin<'_>) -> Result<Vec<Task>> {
    if let Some(files) = from.downloads.get(source) {
        return Ok(vec![build_of_files(files, Path::new(source), from.columns)?]);
    }
    if let Some(suite) = source.strip_prefix("suite:") {
        let (suite, rest) = Suite::split_spec(suite)?;
        return suite.load(rest);
    }
    if let Some((file, names)) = source.split_once(".toml:") {
        return load_some(Path::new(&format!("{file}.toml")), names, from);
    }
    let path = Path::new(source);
    let kind = fs::metadata(path).map_err(TaskError::read(format!("the task `{source}`")))?;
    if kind.is_dir() && dataset_folder::files(path)?.is_none() {
        load_folder(path, from)
    } else {
        load_file(path, from)
    }
}

fn load_file(path: &Path, from: Origin<'_>) -> Result<Vec<Task>> {
    let configs = read_configs(path, from.columns)?;
    configs.iter().map(|config| build(config, path, from.data)).collect()
}

/// The tasks of a TOML that are listed after its colon, in the order of the list.
fn load_some(path: &Path, names: &str, from: Origin<'_>) -> Result<Vec<Task>> {
    let configs = read_configs(path, from.columns)?;
    let name_of = |config: &TaskConfig| config.name.clone().unwrap_or_else(|| stem(path));
    let pick = |name: &str| {
        let found = configs.iter().find(|config| name_of(config) == name);
        let config = found.ok_or_else(|| {
            let names: Vec<_> = configs.iter().map(name_of).collect();
            TaskError::Spec(format!("{} has no task `{name}`; it has {}", path.display(), names.join(", ")))
        })?;
        build(config, path, from.data)
    };
    names.split(',').map(|name| pick(name.trim())).collect()
}

/// The tasks of a file: those of a task TOML, or the one of a data file.
fn read_configs(path: &Path, columns: &ColumnNames) -> Result<Vec<TaskConfig>> {
    if !is_toml(path) {
        return Ok(vec![TaskConfig { columns: columns.clone(), ..TaskConfig::of_data_file(path) }]);
    }
    let bytes = read_whole(path).map_err(TaskError::read(path.display()))?;
    let text = std::str::from_utf8(&bytes).map_err(TaskError::from);
    text.at(|| format!("cannot read {}", path.display()))
        .and_then(|text| TaskConfig::parse(text).at(|| path.display().to_string()))
        .map(|configs| configs.into_iter().map(|config| config.with_columns(columns)).collect())
}

/// Every task under a folder. Data files that its task TOMLs read are not tasks of their own.
fn load_folder(folder: &Path, from: Origin<'_>) -> Result<Vec<Task>> {
    let mut files = list(folder)?;
    let mut used = BTreeSet::new();
    for path in files.iter().filter(|path| is_toml(path)) {
        for config in read_configs(path, from.columns)? {
            let name = config.name.clone().unwrap_or_else(|| stem(path));
            for (_, file) in config.files(&name, path, from.data)? {
                used.extend(file.parent().map(fs::canonicalize).and_then(Result::ok));
                used.extend(fs::canonicalize(file));
            }
        }
    }
    // A broken link stays in the list, so that loading it reports it.
    files.retain(|path| !fs::canonicalize(path).is_ok_and(|path| used.contains(&path)));
    if files.is_empty() {
        return Err(TaskError::Spec(format!(
            "no task in {}: no file that ends in .toml, {}",
            folder.display(),
            endings().join(", ")
        )));
    }
    let tasks = files.iter().map(|path| load_file(path, from));
    Ok(tasks.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Names key experts and results, so they must differ.
fn refuse_duplicates(tasks: &[Task]) -> Result<()> {
    let mut seen: BTreeMap<&str, &Path> = BTreeMap::new();
    for task in tasks {
        if let Some(other) = seen.insert(&task.name, &task.path) {
            return Err(TaskError::DuplicateTask {
                name: task.name.clone(),
                first: other.to_path_buf(),
                second: task.path.clone(),
            });
        }
    }
    Ok(())
}
