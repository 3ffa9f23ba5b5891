//! The errors of this crate.

use crate::weights::storage_dtype::StorageDtype;
use lorakit_format::FormatError;
use std::error::Error;
use std::path::PathBuf;

/// What can go wrong when a base is opened, edited or saved. What computes returns [`candle_core::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A base's path is not a folder.
    #[error("{}: not a folder; a base is a Hugging Face model folder, a GGUF file, hub:ORG/NAME, or pico", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A model folder has no readable `config.json`.
    #[error("not a Hugging Face model folder")]
    NoConfig {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: FormatError,
    },
    /// A file is not the JSON that was expected.
    #[error("{file}: {expected}")]
    Json {
        /// The file.
        file: String,
        /// What was expected.
        expected: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A configuration is incomplete, contradicts itself, or asks for what is not implemented.
    #[error("{file}: {reason}")]
    Config {
        /// The file.
        file: String,
        /// The key, what it holds and what was expected.
        reason: String,
    },
    /// A model folder's weight files are missing, incomplete, or not those of its configuration.
    #[error("{place}: {reason}")]
    Checkpoint {
        /// The file or folder.
        place: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A tensor is missing, or has another shape or type than expected.
    #[error("{place}: tensor `{tensor}` {reason}")]
    Tensor {
        /// The file.
        place: String,
        /// The tensor's name.
        tensor: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// An edited tensor has a value that its type cannot hold.
    #[error("{place}: tensor `{tensor}` is not finite in {dtype:?} after the edit")]
    NotFinite {
        /// The file.
        place: String,
        /// The tensor's name.
        tensor: String,
        /// The type that it is stored in.
        dtype: StorageDtype,
    },
    /// The caller's edit of a tensor failed.
    #[error("{place}: tensor `{tensor}` cannot be edited")]
    Edit {
        /// The file.
        place: String,
        /// The tensor's name.
        tensor: String,
        /// The caller's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A number of values does not fill a matrix.
    #[error("{values} values do not fill {rows} x {columns}")]
    Size {
        /// The number of values.
        values: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A device has no arithmetic of the type that its weights are in.
    #[error("{place}: {reason}")]
    UnsupportedDtype {
        /// The weights' file.
        place: String,
        /// What is needed and what the device has.
        reason: String,
    },
    /// A base that was opened frozen has no trained weights to save.
    #[error("the base was not opened to be trained, so there are no trained weights to save")]
    NotTrainable,
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result with this crate's error.
pub(crate) type Result<T> = std::result::Result<T, ModelError>;
