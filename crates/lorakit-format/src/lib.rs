//! Files and random numbers, without tensors: what every other crate of lorakit needs to read and write safely.
//!
//! - [`atomic`] writes files and folders that appear whole or not at all;
//! - [`mmap::MappedFile`] maps a file of weights into memory, and [`safetensors::SafetensorsFile`] reads the header of one;
//! - [`gguf`] reads and writes the files of llama.cpp, [`event_file`] those of TensorBoard;
//! - [`FolderLock`] is the exclusive right to change a folder, among processes and machines;
//! - [`read_text`] reads a text file of bounded size, and [`non_finite_json`] finds the numbers that Python's JSON has
//!   beyond JSON's;
//! - [`from_python`] translates regular expressions of Python;
//! - [`hash`] computes SHA-256 hashes, and [`hash_sketch`] tells whether two sets share elements;
//! - [`rng::CounterRng`] is a random stream that depends on its key alone;
//! - [`similar_names`] and [`did_you_mean`] suggest names for a misspelled one.
//!
//! Deliberately absent: tensors and arithmetic, and any knowledge of adapters, models, tasks or libraries. Every error is
//! a [`FormatError`].
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use lorakit_format::rng::Key;
//! use lorakit_format::{atomic, hash, read_text};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("record.json");
//! atomic::write_file(&path, b"{}\n")?;
//! assert_eq!(read_text(&path)?, "{}\n");
//! assert_eq!(hash::sha256_of_file(&path)?, hash::sha256(b"{}\n"));
//!
//! // The order of ten rows in an expert's second epoch, whatever was drawn before.
//! let order = || Key::new(7, "order").text("boolq").number(1).stream().permutation(10);
//! assert_eq!(order(), order());
//! # Ok(())
//! # }
//! ```

pub mod atomic;
mod error;
mod error_chain;
pub mod event_file;
mod folder_lock;
pub mod gguf;
pub mod hash;
pub mod hash_sketch;
mod lease;
mod lfs_pointer;
mod limited_read;
pub mod mmap;
mod mount_options;
pub mod non_finite_json;
mod python_pattern;
pub mod rng;
pub mod safetensors;
mod similar_names;

pub use error::FormatError;
pub use error_chain::error_chain;
pub use folder_lock::{FolderLock, LockAttempt, takeover_time};
pub use lfs_pointer::refuse_lfs_pointer;
pub use limited_read::{read_text, read_text_up_to};
pub use python_pattern::{from_python, replacement_from_python};
pub use similar_names::{did_you_mean, similar_names};
