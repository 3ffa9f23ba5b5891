//! The errors of this crate.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// An operation of the file system failed.
    #[error("{}: cannot be {action}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was to happen to it, as a participle: `read`, `written`, `created`.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Memory allocation failed.
    #[error("cannot allocate {bytes} bytes of memory")]
    Memory {
        /// How much.
        bytes: usize,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A writer failed to produce a file's content.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The writer's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A text file is longer than it may be.
    #[error("{}: cannot be read: it is longer than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A pointer of Git LFS stands where a file is expected.
    #[error(
        "{}: a pointer of Git LFS instead of the file; run `git lfs pull` where the repository was cloned, or name it as \
         hub:ORG/NAME", path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The file that says how long a lease lasts holds something else.
    #[error("{}: holds `{}`; expected a number of seconds", path.display(), text.trim())]
    LeaseTime {
        /// The file.
        path: PathBuf,
        /// Its text.
        text: String,
    },
    /// Another process has taken over a lock, since this one was silent for longer than a lease lasts.
    #[error(
        "{}: its lock was taken over by {holder}, since this process was suspended or could not reach the folder for longer \
         than the library's .lease says; nothing more is written, so run the same command again", folder.display()
    )]
    LeaseLost {
        /// The locked folder.
        folder: PathBuf,
        /// The present holder.
        holder: String,
    },
    /// A path ends in no file name, as `/` and `..` do.
    #[error("{}: the path does not end in a name", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// A safetensors file is damaged or is something else.
    #[error("{}: not a complete safetensors file; if it was downloaded or copied, do that again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: safetensors::SafeTensorError,
    },
    /// A GGUF file is damaged, is something else, or holds what is not expected.
    #[error("{}: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The key or tensor, what was expected and what was found.
        reason: String,
    },
    /// A safetensors file lacks a tensor.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
}

impl FormatError {
    /// Wraps an I/O error of `path`; `action` is a participle, such as `read`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }
}
