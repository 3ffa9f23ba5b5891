//! Parquet files: of the Hub, of pandas and of Spark.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::serialized_reader::SerializedPageReader;

use crate::error::{Result, TaskError};
use crate::source::arrow_values::append_rows;
use crate::source::document::Document;
use crate::source::file_extension::has_extension;
use crate::source::file_format::FileFormat;
use crate::source::size_budget::SizeBudget;

/// A Parquet file, plain or compressed by Snappy, Zstandard, LZ4 or gzip.
pub(crate) struct Parquet;

/// What a Parquet file begins and ends with.
const MAGIC: &[u8] = b"PAR1";

impl FileFormat for Parquet {
    fn extension(&self) -> &'static str {
        ".parquet"
    }

    fn parse(&self, path: &Path, content: &[u8]) -> Result<Option<Document>> {
        if !content.starts_with(MAGIC) {
            // Text of another format may have this extension; what is not text would be refused as such by the others.
            if self.is_named(path) && std::str::from_utf8(content).is_err() {
                return Err(TaskError::Data("not a Parquet file: it does not begin with `PAR1`".to_owned()));
            }
            return Ok(None);
        }
        let refused = |error: ParquetError| TaskError::Data(format!("not a Parquet file: {error}"));
        let file = Bytes::copy_from_slice(content);
        // The Arrow schema that some writers embed adds nothing to Parquet's own types that JSON can hold.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(refused)?;
        ensure_bounded(&file, &metadata)?;
        let mut budget = SizeBudget::of_file(content.len());
        let mut rows = Vec::new();
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata).build().map_err(refused)?;
        for batch in batches {
            let batch = batch.map_err(|error| TaskError::Data(format!("not a Parquet file: {error}")))?;
            append_rows(&batch, &mut budget, &mut rows)?;
        }
        Ok(Some(Document::Rows(rows)))
    }
}

impl Parquet {
    /// Whether a file has the extension of this format, compressed or not.
    fn is_named(&self, path: &Path) -> bool {
        has_extension(&path.to_string_lossy(), self.extension())
    }
}

/// Refuses a file whose pages claim more values than its size allows, before any of them is read: run lengths can make
/// billions of values from a few bytes.
fn ensure_bounded(file: &Bytes, metadata: &ArrowReaderMetadata) -> Result<()> {
    let refused = |error: ParquetError| TaskError::Data(format!("not a Parquet file: {error}"));
    let mut budget = SizeBudget::of_file(file.len());
    let source = Arc::new(file.clone());
    for group in metadata.metadata().row_groups() {
        let rows = usize::try_from(group.num_rows()).map_err(|_| inconsistent("a row group of less than no rows"))?;
        for column in group.columns() {
            let offsets =
                [column.dictionary_page_offset().unwrap_or(0), column.data_page_offset(), column.compressed_size()];
            if offsets.iter().any(|offset| *offset < 0) {
                return Err(inconsistent("a column that begins before the file"));
            }
            if matches!(column.compression(), Compression::BROTLI(_) | Compression::LZO) {
                let message =
                    "a Parquet file compressed by Brotli or LZO, which is not read; write it with Zstandard or Snappy";
                return Err(TaskError::Data(message.to_owned()));
            }
            let mut pages = SerializedPageReader::new(source.clone(), column, rows, None).map_err(refused)?;
            while let Some(page) = pages.get_next_page().map_err(refused)? {
                if page.num_values() == 0 && !page.buffer().is_empty() {
                    return Err(inconsistent("a page of bytes without values"));
                }
                budget.spend_values(page.num_values() as usize, 0)?;
                if column.column_descr().max_def_level() == 1 && column.column_descr().max_rep_level() == 0 {
                    ensure_levels(&page).ok_or_else(|| inconsistent("a run of levels that its page does not have"))?;
                }
            }
        }
    }
    Ok(())
}

/// Whether the definition levels of one bit that a page claims to have are there: the decoder would panic. None if not.
fn ensure_levels(page: &Page) -> Option<()> {
    let mut levels: &[u8] = match page {
        Page::DataPage { buf, def_level_encoding: Encoding::RLE, .. } => {
            let (length, rest) = buf.split_first_chunk::<4>()?;
            rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?
        }
        Page::DataPageV2 { buf, def_levels_byte_len, .. } => buf.get(..usize::try_from(*def_levels_byte_len).ok()?)?,
        _ => return Some(()),
    };
    while !levels.is_empty() {
        // A run begins with a number in base 128: whether its levels are packed, and how many bytes of them or repetitions.
        let length = levels.iter().position(|byte| *byte < 128)?;
        let digits = levels.get(..=length).filter(|digits| digits.len() <= 9)?;
        let header = digits.iter().rev().fold(0u64, |number, digit| number << 7 | u64::from(digit & 127));
        let bytes = if header & 1 == 1 { usize::try_from(header >> 1).ok()? } else { 1 };
        levels = levels.get(digits.len().checked_add(bytes)?..)?;
    }
    Some(())
}

fn inconsistent(found: &str) -> TaskError {
    TaskError::Data(format!("not a Parquet file: {found}"))
}
