//! The keys of a task TOML.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::column_names::ColumnNames;
use crate::error::{Result, TaskError};
use crate::loading::dataset_folder;
use crate::loading::split_files::SplitFile;
use crate::metric::Metric;
use crate::split::Split;

/// The keys of a task TOML. All are optional but one of `rows`, `train`, `validation` and `test`. Without `prompt`,
/// `target` and `choices`, the row formats apply.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskConfig {
    /// The task's name; by default the file's stem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One sentence for listings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,

    /// A file whose rows are split by hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    /// A file of train rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// A file of validation rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// A file of test rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// A dotted path of keys to the rows in each file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_at: Option<String>,
    /// The seed of the split by hash; by default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_seed: Option<u64>,
    /// The columns that stand for the standard ones.
    #[serde(skip_serializing_if = "ColumnNames::is_empty", default)]
    pub columns: ColumnNames,

    /// A text before each row's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// A dotted path of keys to the instruction in each file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction_at: Option<String>,
    /// A template for what the model reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// One or several templates or expressions for the accepted answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<OneOrMany>,
    /// An expression for the list of choices, or a list of templates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<OneOrMany>,
    /// A template or expression for the index or text of the right choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The text between prompt and answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_delimiter: Option<String>,
    /// The text before the examples of `--num-fewshot`; by default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewshot_description: Option<String>,
    /// The text after each example of `--num-fewshot`; by default an empty line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewshot_delimiter: Option<String>,

    /// The metrics; loss is always one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Vec<Metric>>,
    /// A regular expression that finds the answer in generated text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extract: Option<String>,
    /// Whether answers are equal whatever their case; by default not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_case: Option<bool>,
    /// Regular expressions of what is removed from answers before they are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regexes_to_ignore: Option<Vec<String>>,
    /// By how much numbers may differ; without it they are compared as texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Texts at which generation stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// The largest number of generated tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,

    /// Several tasks in one file, with the keys above as defaults.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub task: Vec<TaskConfig>,
}

/// A text, or a list of texts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl TaskConfig {
    /// The config of a data file, or of a folder of them, that is a task by itself.
    pub fn of_data_file(path: &Path) -> TaskConfig {
        // Relative to the file's own folder, as the paths of a task TOML are. `..` has no name.
        let file = path.file_name().map_or(".".into(), |name| name.to_string_lossy().into_owned());
        TaskConfig { rows: Some(file), ..TaskConfig::default() }
    }

    /// The tasks of a TOML file, with its defaults filled in.
    pub fn parse(text: &str) -> Result<Vec<TaskConfig>> {
        let mut defaults: TaskConfig = toml::from_str(text).map_err(|error| TaskError::Toml(Box::new(error)))?;
        let entries = std::mem::take(&mut defaults.task);
        if entries.is_empty() {
            return Ok(vec![defaults]);
        }
        if let Some(name) = &defaults.name {
            return Err(refused(format!(
                "`name = \"{name}\"` is given above several tasks; give each [[task]] its own"
            )));
        }
        let filled = |(i, entry): (usize, TaskConfig)| {
            if entry.name.is_none() {
                return Err(refused(format!("[[task]] number {} has no `name`", i + 1)));
            }
            if !entry.task.is_empty() {
                return Err(refused(format!("[[task]] number {} contains another [[task]]", i + 1)));
            }
            Ok(entry.or(&defaults))
        };
        entries.into_iter().enumerate().map(filled).collect()
    }

    /// Its own keys, and the defaults' for those it lacks.
    fn or(self, defaults: &TaskConfig) -> TaskConfig {
        let other = defaults.clone();
        TaskConfig {
            name: self.name,
            description: self.description.or(other.description),
            rows: self.rows.or(other.rows),
            train: self.train.or(other.train),
            validation: self.validation.or(other.validation),
            test: self.test.or(other.test),
            rows_at: self.rows_at.or(other.rows_at),
            split_seed: self.split_seed.or(other.split_seed),
            columns: self.columns.or(&other.columns),
            instruction: self.instruction.or(other.instruction),
            instruction_at: self.instruction_at.or(other.instruction_at),
            prompt: self.prompt.or(other.prompt),
            target: self.target.or(other.target),
            choices: self.choices.or(other.choices),
            answer: self.answer.or(other.answer),
            target_delimiter: self.target_delimiter.or(other.target_delimiter),
            fewshot_description: self.fewshot_description.or(other.fewshot_description),
            fewshot_delimiter: self.fewshot_delimiter.or(other.fewshot_delimiter),
            metrics: self.metrics.or(other.metrics),
            extract: self.extract.or(other.extract),
            ignore_case: self.ignore_case.or(other.ignore_case),
            regexes_to_ignore: self.regexes_to_ignore.or(other.regexes_to_ignore),
            tolerance: self.tolerance.or(other.tolerance),
            stop: self.stop.or(other.stop),
            max_new_tokens: self.max_new_tokens.or(other.max_new_tokens),
            task: Vec::new(),
        }
    }

    /// The config with names for the columns that it has no name for.
    pub fn with_columns(mut self, columns: &ColumnNames) -> TaskConfig {
        self.columns = self.columns.or(columns);
        self
    }

    /// Refuses keys that contradict each other.
    pub fn validate(&self) -> Result<()> {
        let files = [&self.rows, &self.train, &self.validation, &self.test];
        if files.iter().all(|file| file.is_none()) {
            return Err(refused("no data: give `rows`, or a file for each split (`train`, `validation`, `test`)"));
        }
        if self.rows.is_some() && self.train.is_some() {
            return Err(refused("`rows` and `train` both give train rows; keep one"));
        }
        if self.instruction.is_some() && self.instruction_at.is_some() {
            return Err(refused("`instruction` and `instruction_at` both give the instruction; keep one"));
        }
        if self.target.is_some() && (self.choices.is_some() || self.answer.is_some()) {
            return Err(refused(
                "`target` is for tasks with text answers, `choices` and `answer` for choice tasks; keep one form",
            ));
        }
        if self.max_new_tokens == Some(0) {
            return Err(refused("`max_new_tokens` is 0; expected at least 1"));
        }
        Ok(())
    }

    /// The paths of the data files, each with the split it is for; None: split by hash. A folder that is one task stands for
    /// its files, and `NAME.parquet` for its shards where there is no such file.
    pub fn files(&self, name: &str, path: &Path, data: Option<&Path>) -> Result<Vec<SplitFile>> {
        let own = if path.file_name().is_none() { path } else { path.parent().unwrap_or(Path::new("")) };
        let folders = Folders { own, data };
        let keys = [
            (None, &self.rows),
            (Some(Split::Train), &self.train),
            (Some(Split::Validation), &self.validation),
            (Some(Split::Test), &self.test),
        ];
        let mut files = Vec::new();
        for (split, file) in keys.into_iter().filter_map(|(split, file)| Some((split, file.as_deref()?))) {
            let path = folders.resolve(file, name)?;
            let inside = if path.is_dir() { dataset_folder::files(&path)? } else { None };
            let shards = dataset_folder::shards_of(&path)?;
            match inside {
                None if !shards.is_empty() => files.extend(shards.into_iter().map(|file| (split, file))),
                None => files.push((split, path)),
                Some(inside) => files.extend(of_key(split, inside, &path)?),
            }
        }
        Ok(files)
    }

    /// The keys that decide what prompts and answers are: the part that a task's hash covers. Names, paths, metrics and
    /// generation limits may change while the task stays the one that an expert was trained on; data files are hashed
    /// by content.
    pub fn identity(&self) -> TaskConfig {
        TaskConfig {
            rows_at: self.rows_at.clone(),
            columns: self.columns.clone(),
            instruction: self.instruction.clone(),
            instruction_at: self.instruction_at.clone(),
            prompt: self.prompt.clone(),
            target: self.target.clone(),
            choices: self.choices.clone(),
            answer: self.answer.clone(),
            target_delimiter: self.target_delimiter.clone(),
            ..TaskConfig::default()
        }
    }
}

/// The files of a folder that a key gives for a split, or for all rows.
fn of_key(split: Option<Split>, inside: Vec<SplitFile>, folder: &Path) -> Result<Vec<SplitFile>> {
    let Some(split) = split else { return Ok(inside) };
    if let Some((Some(other), _)) = inside.iter().find(|(own, _)| own.is_some()) {
        return Err(refused(format!(
            "`{split} = ...`: {} has splits of its own, such as {other}; give it as `rows`, or a folder or file inside it",
            folder.display()
        )));
    }
    Ok(inside.into_iter().map(|(_, file)| (Some(split), file)).collect())
}

fn refused(message: impl Into<String>) -> TaskError {
    TaskError::Config(message.into())
}

/// What the paths of a task file are relative to.
struct Folders<'a> {
    /// The task file's own folder, the root of relative paths.
    own: &'a Path,
    /// What `{data}` stands for.
    data: Option<&'a Path>,
}

impl Folders<'_> {
    /// A data file's path with `{data}` and `{name}` filled in.
    fn resolve(&self, path: &str, name: &str) -> Result<PathBuf> {
        let mut filled = path.replace("{name}", name);
        if filled.contains("{data}") {
            let Some(data) = self.data else {
                return Err(refused(format!("`{path}` is in the data folder, and none was given: add --data DIR")));
            };
            filled = filled.replace("{data}", &data.display().to_string());
            // Relative to the working directory, as every path on the command line.
            if filled.starts_with(&data.display().to_string()) {
                return Ok(PathBuf::from(filled));
            }
        }
        Ok(self.own.join(filled))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_inherit_the_keys_above_them() {
        let text = r#"
            rows = "{data}/{name}.json"
            split_seed = 3
            [[task]]
            name = "a"
            instruction = "Do a."
            [[task]]
            name = "b"
            rows = "b.jsonl"
        "#;
        let tasks = TaskConfig::parse(text).unwrap();
        assert_eq!(tasks[0].rows.as_deref(), Some("{data}/{name}.json"));
        assert_eq!((tasks[1].rows.as_deref(), tasks[1].split_seed), (Some("b.jsonl"), Some(3)));
        assert_eq!(tasks[1].instruction, None);
    }

    #[test]
    fn paths_are_relative_to_the_task_file_or_to_the_data_folder() {
        let own = Path::new("configs");
        let folders = Folders { own, data: Some(Path::new("d")) };
        assert_eq!(folders.resolve("x.json", "n").unwrap(), Path::new("configs/x.json"));
        assert_eq!(folders.resolve("{data}/{name}.json", "n").unwrap(), Path::new("d/n.json"));
        let error = Folders { own, data: None }.resolve("{data}/x.json", "n").unwrap_err();
        assert!(error.to_string().contains("--data"));
    }

    #[test]
    fn errors_name_the_wrong_key() {
        let message = |text: &str| {
            let checked = TaskConfig::parse(text).and_then(|tasks| tasks[0].validate());
            format!("{:#}", anyhow::Error::from(checked.unwrap_err()))
        };
        assert!(message("rows = \"a\"\npromt = \"x\"").contains("promt"));
        assert!(message("rows = \"a\"\nmetrics = [\"bleu\"]").contains("bleu"));
        assert!(message("name = \"a\"").contains("no data"));
        assert!(message("rows = \"a\"\ntrain = \"b\"").contains("both"));
        assert!(message("rows = \"a\"\n[[task]]\n").contains("no `name`"));
        assert!(message("rows = \"a\"\ntarget = \"t\"\nanswer = \"0\"").contains("keep one form"));
    }
}
