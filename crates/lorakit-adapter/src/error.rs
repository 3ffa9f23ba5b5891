//! The errors of this crate.

use std::path::{Path, PathBuf};

use lorakit_format::FormatError;

use crate::peft::unsupported::UnsupportedConfig;

/// The result of this crate's functions.
pub(crate) type Result<T, E = AdapterError> = std::result::Result<T, E>;

/// Why an adapter or a library cannot be used.
///
/// Errors form a chain: the outer ones ([`Context`](Self::Context)) name the file, expert, module or tensor, and the
/// innermost says what was found and expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// What the source is about: a file, an expert, a module or a tensor.
    #[error("{what}")]
    Context {
        /// The file, expert, module or tensor.
        what: String,
        /// What is wrong there.
        source: Box<AdapterError>,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FormatError),
    /// A file or folder cannot be accessed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file of lorakit's own is not JSON of the expected form.
    #[error("{}: not in the form in which lorakit writes it", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A value cannot be written as JSON.
    #[error("cannot be written as JSON")]
    Serialize(#[source] serde_json::Error),
    /// An export for llama.cpp of an adapter of a base whose architecture it does not have, or has under an unknown name.
    #[error(
        "no GGUF adapter can be written for a base of architecture `{architecture}`: llama.cpp's name for it is not known"
    )]
    GgufArchitecture {
        /// `model_type` of the base.
        architecture: String,
    },
    /// A module that llama.cpp has no tensor for.
    #[error("`{module}`: llama.cpp's tensor for this module is not known, so no GGUF adapter can be written")]
    GgufModule {
        /// The module's path.
        module: String,
    },
    /// A tensor of a GGUF adapter that has no module in Hugging Face's models.
    #[error("`{tensor}`: the module for this tensor of llama.cpp's architecture `{architecture}` is not known")]
    GgufTensor {
        /// llama.cpp's name of the tensor.
        tensor: String,
        /// `general.architecture`.
        architecture: String,
    },
    /// A GGUF adapter of queries or keys, for a base whose number of heads is not known.
    #[error(
        "llama.cpp reorders its rows within each head, and how many heads there are is not known: give the base with --base"
    )]
    GgufHeads,
    /// A document inside a record has another form than the one asked for.
    #[error("a record has another form than expected")]
    OpaqueRecord(#[source] serde_json::Error),
    /// An adapter_config.json is no JSON object.
    #[error("not a JSON object")]
    ConfigJson(#[source] serde_json::Error),
    /// An adapter_config.json describes more than a plain LoRA.
    #[error(transparent)]
    Config(#[from] UnsupportedConfig),
    /// A pattern over module paths is not a regular expression.
    #[error("`{pattern}` is not a regular expression")]
    Regex {
        /// The pattern.
        pattern: String,
        /// The parser's error.
        source: Box<fancy_regex::Error>,
    },
    /// A pattern over module paths is longer than any honest one.
    #[error("the pattern has {length} bytes; expected at most {limit}")]
    PatternLength {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A pattern backtracks too much on a path.
    #[error(
        "the pattern `{pattern}` was stopped on `{path}` after {limit} backtracking steps; write it without nested \
         repetition"
    )]
    Backtracking {
        /// The pattern.
        pattern: String,
        /// The module path.
        path: String,
        /// The limit in steps.
        limit: usize,
        /// The matcher's error.
        source: Box<fancy_regex::Error>,
    },
    /// `target_modules` and the keys that narrow it contradict each other.
    #[error("{0}")]
    Targets(&'static str),
    /// A matrix or an update has another shape than its values, its factors or its counterpart.
    #[error("{0}")]
    Shape(String),
    /// A matrix holds NaN or infinity.
    #[error("row {row}, column {column} is {value}; expected finite values")]
    NotFinite {
        /// The row, from 0.
        row: usize,
        /// The column, from 0.
        column: usize,
        /// The value.
        value: f32,
    },
    /// The factor of an update is NaN or infinite.
    #[error("the scale is {0}; expected a finite number")]
    Scale(f64),
    /// The tensors are not those of one complete, plain LoRA adapter.
    #[error("{0}")]
    Tensors(String),
    /// A folder is not an adapter's, or holds its weights in another format.
    #[error("{0}")]
    AdapterFolder(String),
    /// The adapter was made for another base.
    #[error("{0}")]
    AdapterBase(String),
    /// The library, expert or model belongs to another base.
    #[error("{0}")]
    LibraryBase(String),
    /// A name is not a valid expert name.
    #[error("{0}")]
    ExpertName(String),
    /// The library has no such expert.
    #[error("{0}")]
    UnknownExpert(String),
    /// The library has such an expert already.
    #[error("{}: the expert `{name}` already exists; choose another name, or remove it first", root.display())]
    ExpertExists {
        /// The library's folder.
        root: PathBuf,
        /// The expert's name.
        name: String,
    },
    /// A folder is not a library that this version reads.
    #[error("{0}")]
    LibraryFolder(String),
    /// An entry of a library is a link, which may lead out of it.
    #[error("{}: found a link; lorakit follows no links out of a library: put its target there instead", .0.display())]
    Link(PathBuf),
    /// A router's state is missing or was changed.
    #[error("{0}")]
    RouterState(String),
    /// A pickle, or the torch.save file that it is in, does not hold what was expected.
    #[error("{0}")]
    Pickle(String),
}

impl AdapterError {
    /// The messages of the error and its sources, separated by colons.
    pub(crate) fn chain(&self) -> String {
        lorakit_format::error_chain(self)
    }
}

/// The error of a pickle or of the file around it.
pub(crate) fn pickle_error(reason: impl Into<String>) -> AdapterError {
    AdapterError::Pickle(reason.into())
}

/// Adds to an error what it is about.
pub(crate) trait Within<T> {
    /// Wraps the error in the name of a file, expert, module or tensor.
    fn within(self, what: impl FnOnce() -> String) -> Result<T>;

    /// Wraps the error in the path of a file.
    fn within_file(self, path: &Path) -> Result<T>;
}

impl<T, E: Into<AdapterError>> Within<T> for Result<T, E> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| AdapterError::Context { what: what(), source: Box::new(error.into()) })
    }

    fn within_file(self, path: &Path) -> Result<T> {
        self.within(|| path.display().to_string())
    }
}
