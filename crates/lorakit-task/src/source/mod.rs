//! Data files: from bytes on disk to rows of columns.
//!
//! A new file format is one file that implements [`file_format::FileFormat`], its `mod` line here, and one line in
//! [`file_formats::FILE_FORMATS`].

mod arrow_stream;
mod arrow_values;
pub(crate) mod data_file;
mod delimited;
pub(crate) mod document;
pub(crate) mod file_content;
pub(crate) mod file_extension;
pub(crate) mod file_format;
pub(crate) mod file_formats;
mod gzip;
mod json;
pub(crate) mod json_lines;
mod parquet;
mod size_budget;
pub(crate) mod source_value;
