//! Data files: from bytes on disk to rows of columns.
//!
//! A new file format is one file that implements [`file_format::FileFormat`], its `mod` line here, and one line in
//! [`file_formats::FILE_FORMATS`].

pub(crate) mod data_file;
pub(crate) mod document;
pub(crate) mod file_format;
pub(crate) mod file_formats;
pub(crate) mod gzip;
pub(crate) mod json;
pub(crate) mod json_lines;
pub(crate) mod source_value;
