//! What can be wrong with a task, its data files or a tokenizer.

use std::path::PathBuf;

use lorakit_format::did_you_mean;

/// The result of everything in this crate that can fail.
pub type Result<T, E = TaskError> = std::result::Result<T, E>;

/// Why a task could not be loaded, or text not be tokenized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Where the error that is its source occurred.
    #[error("{what}")]
    Context {
        /// A file, a row, a key of a task TOML or a column.
        what: String,
        /// What is wrong there.
        source: Box<TaskError>,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// The file or folder.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that is not UTF-8 text.
    #[error("not UTF-8 text")]
    Utf8(#[from] std::str::Utf8Error),
    /// A data file that is not in the format expected of it.
    #[error("{0}")]
    Data(String),
    /// A task TOML that is not one.
    #[error("not a task file")]
    Toml(#[source] Box<toml::de::Error>),
    /// Keys of a task TOML that are missing or contradict each other.
    #[error("{0}")]
    Config(String),
    /// What a user typed names no task.
    #[error("{0}")]
    Spec(String),
    /// A name that is not in a closed list, such as a metric's.
    #[error("unknown {what} `{name}`{}; expected one of {known}", did_you_mean(.name, .known))]
    UnknownName {
        /// What was to be named.
        what: &'static str,
        /// The name found.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Two tasks with one name, which keys experts and results.
    #[error(
        "two tasks are named `{name}`: {} and {}. Give one of them another name: NAME=FILE",
        first.display(), second.display()
    )]
    DuplicateTask {
        /// The name.
        name: String,
        /// Where the first task comes from.
        first: PathBuf,
        /// Where the second comes from.
        second: PathBuf,
    },
    /// A split without rows, where rows are needed.
    #[error(
        "task `{task}` ({}) has no {split} rows: its {rows} rows are {counts}, split by hash with split_seed {split_seed} \
         unless the task gives a file for a split. Use another split (`eval --split all` scores every row), more rows, or \
         another split_seed", path.display()
    )]
    EmptySplit {
        /// The task.
        task: String,
        /// Where it comes from.
        path: PathBuf,
        /// The split.
        split: &'static str,
        /// How many rows the task has.
        rows: usize,
        /// How many each split has, in words.
        counts: String,
        /// The seed of the split.
        split_seed: u64,
    },
    /// Too few train rows for the examples of few-shot prompts.
    #[error(
        "task `{task}` has {rows} train rows; {shots} examples before each prompt need {shots} train rows besides the row itself"
    )]
    FewShot {
        /// The task.
        task: String,
        /// How many examples each prompt needs.
        shots: usize,
        /// How many train rows the task has.
        rows: usize,
    },
    /// A JSON value of another kind than the one expected.
    #[error("expected {expected}, found {found}")]
    Value {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A column that a row lacks.
    #[error("the row has no `{column}`; it has {present}. {formats}")]
    MissingColumn {
        /// The column.
        column: String,
        /// The columns there are.
        present: String,
        /// What rows may look like.
        formats: String,
    },
    /// A row whose columns do not make a prompt and an answer.
    #[error("{0}")]
    Row(String),
    /// A template that cannot be compiled.
    #[error("`{key}` is not {expected}")]
    Template {
        /// The key of the task TOML.
        key: String,
        /// What was expected.
        expected: String,
        /// What the template engine said.
        source: Box<minijinja::Error>,
    },
    /// A chat template that is missing or cannot be compiled.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// A conversation that the chat template refuses, in the template's words.
    #[error("the chat template refuses the conversation: {0}")]
    RefusedChat(String),
    /// A template that cannot be rendered over a row.
    #[error("{0}")]
    Render(String),
    /// A pattern that is not a regular expression.
    #[error("`{key}`: not a regular expression: {pattern}")]
    Pattern {
        /// The key of the task file.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What the regex engine said.
        source: Box<fancy_regex::Error>,
    },
    /// A tokenizer that cannot be read, or that fails on a text.
    #[error("{what}: {message}")]
    Tokenizer {
        /// What was being done.
        what: &'static str,
        /// What the tokenizers crate said.
        message: String,
    },
    /// Special tokens that are missing or unknown.
    #[error("{0}")]
    SpecialTokens(String),
    /// A file beside a tokenizer that is not JSON.
    #[error("not JSON")]
    Json(#[from] serde_json::Error),
    /// A text that does not fit the length allowed.
    #[error("{0}")]
    Length(String),
}

impl TaskError {
    /// The error and its sources in one line.
    pub(crate) fn chain(&self) -> String {
        lorakit_format::error_chain(self)
    }

    /// The same error, said to have occurred at `what`.
    pub(crate) fn at(self, what: impl Into<String>) -> Self {
        TaskError::Context { what: what.into(), source: Box::new(self) }
    }

    /// An error of the tokenizers crate, while doing `what`.
    pub(crate) fn tokenizer(what: &'static str) -> impl FnOnce(tokenizers::Error) -> Self {
        move |error| TaskError::Tokenizer { what, message: error.to_string() }
    }

    /// Another value than the one expected.
    pub(crate) fn value(expected: impl Into<String>, found: impl Into<String>) -> Self {
        TaskError::Value { expected: expected.into(), found: found.into() }
    }

    /// A failure to read a file or folder.
    pub(crate) fn read(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |source| TaskError::Read { what: what.to_string(), source }
    }
}

/// Says where errors occurred.
pub(crate) trait At<T> {
    /// Says that an error, if there is one, occurred at `what`.
    fn at<P: Into<String>>(self, what: impl FnOnce() -> P) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at<P: Into<String>>(self, what: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|error| error.at(what()))
    }
}
