//! What a user types after `--tasks`: `[NAME=]T`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::column_names::ColumnNames;
use crate::error::{At, Result, TaskError};
use crate::loading::dataset_folder;
use crate::loading::split_files::SplitFiles;
use crate::loading::suite::Suite;
use crate::loading::task_builder::{build, build_of_files};
use crate::loading::task_config::TaskConfig;
use crate::loading::task_files::{is_toml, list, stem};
use crate::source::file_content::read_whole;
use crate::source::file_formats::extensions;
use crate::task::Task;

/// Loads tasks by their specs.
#[derive(Clone, Debug, Default)]
pub struct TaskLoader {
    /// What `{data}` in a task TOML stands for.
    pub data: Option<PathBuf>,
    /// The columns that stand for the standard ones, where a task TOML does not say so itself.
    pub columns: ColumnNames,
    /// Files of sources that are not on disk under their own names, such as datasets of the Hub.
    pub downloads: BTreeMap<String, SplitFiles>,
}

impl Task {
    /// Loads a spec; `data` replaces `{data}` in a task TOML. [`TaskLoader`] has the forms of specs, and more options.
    ///
    /// # Errors
    /// As [`TaskLoader::load`].
    pub fn load(spec: &str, data: Option<&Path>) -> Result<Vec<Task>> {
        TaskLoader { data: data.map(Path::to_owned), ..TaskLoader::default() }.load(&[spec.to_owned()])
    }

    /// The source in `[NAME=]SOURCE`.
    ///
    /// # Errors
    /// If the spec has another form.
    pub fn source_of(spec: &str) -> Result<&str> {
        Ok(split_name(spec)?.1)
    }
}

impl TaskLoader {
    /// Loads specs in order: `[NAME=]T`, where T is a task TOML (`FILE.toml`, or `FILE.toml:NAME,...` for some of its
    /// tasks), a data file whose rows are of a known format, a folder that `datasets` saved or whose files are named after
    /// splits, a folder of any of these, `suite:NAME`, or one of the `downloads`.
    ///
    /// # Errors
    /// If a file cannot be read, a row does not fit (the message names file, row and column) or lacks one of the `columns`,
    /// two tasks have one name, or `NAME=` is given for several tasks.
    pub fn load(&self, specs: &[String]) -> Result<Vec<Task>> {
        let mut tasks = Vec::new();
        for spec in specs {
            tasks.extend(self.load_one(spec)?);
        }
        for task in &mut tasks {
            task.columns = self.columns.clone();
        }
        refuse_duplicates(&tasks)?;
        Ok(tasks)
    }

    fn load_one(&self, spec: &str) -> Result<Vec<Task>> {
        let (name, source) = split_name(spec)?;
        let mut tasks = self.load_source(source)?;
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

    fn load_source(&self, source: &str) -> Result<Vec<Task>> {
        if let Some(files) = self.downloads.get(source) {
            return Ok(vec![build_of_files(files, Path::new(source), &self.columns)?]);
        }
        if let Some(suite) = source.strip_prefix("suite:") {
            let (suite, rest) = Suite::split_spec(suite)?;
            return suite.load(rest);
        }
        if let Some((file, names)) = source.split_once(".toml:") {
            return self.load_some(Path::new(&format!("{file}.toml")), names);
        }
        let path = Path::new(source);
        let kind = fs::metadata(path).map_err(TaskError::read(format!("the task `{source}`")))?;
        if kind.is_dir() && dataset_folder::files(path)?.is_none() {
            self.load_folder(path)
        } else {
            self.load_file(path)
        }
    }

    fn load_file(&self, path: &Path) -> Result<Vec<Task>> {
        let configs = read_configs(path, &self.columns)?;
        configs.iter().map(|config| build(config, path, self.data.as_deref())).collect()
    }

    /// The tasks of a TOML that are listed after its colon, in the order of the list.
    fn load_some(&self, path: &Path, names: &str) -> Result<Vec<Task>> {
        let configs = read_configs(path, &self.columns)?;
        let name_of = |config: &TaskConfig| config.name.clone().unwrap_or_else(|| stem(path));
        let pick = |name: &str| {
            let found = configs.iter().find(|config| name_of(config) == name);
            let config = found.ok_or_else(|| {
                let names: Vec<_> = configs.iter().map(name_of).collect();
                TaskError::Spec(format!("{} has no task `{name}`; it has {}", path.display(), names.join(", ")))
            })?;
            build(config, path, self.data.as_deref())
        };
        names.split(',').map(|name| pick(name.trim())).collect()
    }

    /// Every task under a folder. Data files that its task TOMLs read are not tasks of their own.
    fn load_folder(&self, folder: &Path) -> Result<Vec<Task>> {
        let mut files = list(folder)?;
        let mut used = BTreeSet::new();
        for path in files.iter().filter(|path| is_toml(path)) {
            for config in read_configs(path, &self.columns)? {
                let name = config.name.clone().unwrap_or_else(|| stem(path));
                for (_, file) in config.files(&name, path, self.data.as_deref())? {
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
                extensions().join(", ")
            )));
        }
        let tasks = files.iter().map(|path| self.load_file(path));
        let mut tasks: Vec<Task> = tasks.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        if let Some(task) = tasks.iter_mut().find(|task| task.path.is_file() && !is_toml(&task.path))
            && dataset_folder::card_lists_configs(folder)
        {
            task.warnings.push(format!(
                "the `configs` of {} are not read: each data file is a task of its own, whose rows are split by hash. A task \
                 TOML can name the files of each split",
                folder.join(dataset_folder::CARD).display()
            ));
        }
        Ok(tasks)
    }
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
