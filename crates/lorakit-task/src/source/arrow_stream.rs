//! Arrow's IPC stream, which Hugging Face `datasets` writes.

use std::path::Path;

use arrow_buffer::Buffer as Bytes;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::{RecordBatch, root_as_message};
use arrow_schema::{DataType, Schema};

use crate::error::{Result, TaskError};
use crate::source::arrow_values::append_rows;
use crate::source::document::Document;
use crate::source::file_format::FileFormat;
use crate::source::size_budget::SizeBudget;

/// A stream of record batches.
pub(crate) struct ArrowStream;

/// What a message of the stream begins with.
const CONTINUATION: [u8; 4] = [0xff; 4];

impl FileFormat for ArrowStream {
    fn extension(&self) -> &'static str {
        ".arrow"
    }

    fn parse(&self, _: &Path, content: &[u8]) -> Result<Option<Document>> {
        if content.starts_with(b"ARROW1") {
            let message = "an Arrow file with a footer; expected an Arrow stream, as `datasets` writes it, or Parquet";
            return Err(TaskError::Data(message.to_string()));
        }
        if !content.starts_with(&CONTINUATION) {
            return Ok(None);
        }
        let refused = |error: arrow_schema::ArrowError| TaskError::Data(format!("not an Arrow stream: {error}"));
        // The decoder waits for as many bytes as a header asks for, where a reader would allocate them.
        let mut decoder = StreamDecoder::new();
        ensure_whole(content)?;
        let mut buffer = Bytes::from(content);
        let mut budget = SizeBudget::of_file(content.len());
        let mut rows = Vec::new();
        while let Some(batch) = decoder.decode(&mut buffer).map_err(refused)? {
            append_rows(&batch, &mut budget, &mut rows)?;
        }
        decoder.finish().map_err(refused)?;
        Ok(Some(Document::Rows(rows)))
    }
}

/// Refuses a stream that does not end, and one with a buffer on which the decoder would panic: outside its message, or of
/// part of an offset.
fn ensure_whole(content: &[u8]) -> Result<()> {
    let mut rest = content;
    let mut schema = Schema::empty();
    while let Some((start, after)) = rest.split_first_chunk::<8>() {
        let [c0, c1, c2, c3, n0, n1, n2, n3] = *start;
        if [c0, c1, c2, c3] != CONTINUATION {
            return Err(inconsistent("a message without its continuation marker"));
        }
        let size = i32::from_le_bytes([n0, n1, n2, n3]);
        if size == 0 {
            return Ok(());
        }
        let (header, after) = take(after, size.into())?;
        let message = root_as_message(header).map_err(|error| inconsistent(&error.to_string()))?;
        let (body, after) = take(after, message.bodyLength())?;
        if let Some(found) = message.header_as_schema() {
            schema = try_fb_to_schema(found).map_err(|error| inconsistent(&error.to_string()))?;
        }
        if let Some(batch) = message.header_as_record_batch() {
            ensure_buffers(batch, &schema, body)?;
        }
        // The type of a dictionary's values is that of the fields with its identifier: not looked up.
        if let Some(batch) = message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()) {
            ensure_buffers(batch, &Schema::empty(), body)?;
        }
        rest = after;
    }
    Err(inconsistent("it has no end marker; is the file complete?"))
}

fn take(bytes: &[u8], length: i64) -> Result<(&[u8], &[u8])> {
    let split = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
    split.ok_or_else(|| inconsistent("a message beyond the file's end"))
}

fn ensure_buffers(batch: RecordBatch<'_>, schema: &Schema, body: &[u8]) -> Result<()> {
    if let Some(compression) = batch.compression() {
        let name = compression.codec().variant_name().unwrap_or("unknown");
        return Err(TaskError::Data(format!(
            "an Arrow stream compressed by {name}, which is not read; write it without compression, or as Parquet"
        )));
    }
    let mut widths = Vec::new();
    let known = schema.fields().iter().all(|field| offset_widths(field.data_type(), &mut widths));
    for (i, buffer) in batch.buffers().iter().flat_map(|buffers| buffers.iter()).enumerate() {
        let end = buffer.offset().checked_add(buffer.length()).and_then(|end| usize::try_from(end).ok());
        if buffer.offset() < 0 || buffer.length() < 0 || end.is_none_or(|end| end > body.len()) {
            return Err(inconsistent("a buffer outside its message"));
        }
        let width = widths.get(i).filter(|_| known).copied().unwrap_or(1);
        if buffer.length() % width != 0 {
            return Err(inconsistent("a buffer that ends inside an offset"));
        }
    }
    Ok(())
}

/// Appends the width of the offsets in each buffer of a column; 1 for a buffer of something else. False if the buffers of a
/// type are not known in advance.
fn offset_widths(kind: &DataType, widths: &mut Vec<i64>) -> bool {
    match kind {
        DataType::Null => true,
        DataType::Utf8 | DataType::Binary => append(&[1, 4, 1], widths),
        DataType::LargeUtf8 | DataType::LargeBinary => append(&[1, 8, 1], widths),
        DataType::List(item) | DataType::Map(item, _) => {
            append(&[1, 4], widths) && offset_widths(item.data_type(), widths)
        }
        DataType::LargeList(item) => append(&[1, 8], widths) && offset_widths(item.data_type(), widths),
        DataType::FixedSizeList(item, _) => append(&[1], widths) && offset_widths(item.data_type(), widths),
        DataType::Struct(fields) => {
            append(&[1], widths) && fields.iter().all(|field| offset_widths(field.data_type(), widths))
        }
        DataType::Dictionary(_, _) | DataType::Boolean | DataType::FixedSizeBinary(_) => append(&[1, 1], widths),
        kind if kind.is_primitive() => append(&[1, 1], widths),
        _ => false,
    }
}

fn append(more: &[i64], widths: &mut Vec<i64>) -> bool {
    widths.extend(more);
    true
}

fn inconsistent(found: &str) -> TaskError {
    TaskError::Data(format!("not an Arrow stream: {found}"))
}
