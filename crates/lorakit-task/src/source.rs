//! A file of rows: JSON, JSON lines, either gzipped.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lorakit_format::hash::hex;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::field;

/// A file of rows, read whole.
pub(crate) struct Source {
    pub path: PathBuf,
    /// Of the file's bytes as they lie on disk, in hexadecimal: what `sha256sum` prints.
    pub sha256: String,
    document: Document,
}

enum Document {
    Lines(Vec<Value>),
    Whole(Value),
}

impl Source {
    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Source> {
        let bytes = read_whole(path).with_context(|| format!("cannot read {}", path.display()))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        let text = decompress(bytes).and_then(|bytes| Ok(String::from_utf8(bytes)?));
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let document = parse(text).with_context(|| format!("{}", path.display()))?;
        Ok(Source { path: path.into(), sha256, document })
    }

    /// The rows, in file order. `at` is a dotted path of keys to a list or an object of rows;
    /// without it rows are the lines, the one list, or what lies under `examples`.
    pub fn rows(&self, at: Option<&str>) -> Result<Vec<&Map<String, Value>>> {
        let values: Vec<&Value> = match (&self.document, at) {
            (Document::Lines(lines), None) => lines.iter().collect(),
            (Document::Lines(_), Some(at)) => {
                bail!("`rows_at = \"{at}\"` is for one JSON document; these are JSON lines")
            }
            (Document::Whole(row), None) if is_row(row) => vec![row],
            (Document::Whole(whole), at) => children(locate(whole, at)?, at)?,
        };
        if values.is_empty() {
            bail!("no rows: a task needs at least one");
        }
        values.into_iter().enumerate().map(|(i, value)| as_row(i + 1, value)).collect()
    }

    /// The text at a dotted path of keys beside the rows; a list of texts is joined by newlines.
    pub fn text_at(&self, at: &str) -> Result<String> {
        let Document::Whole(whole) = &self.document else {
            bail!("JSON lines have nothing beside their rows");
        };
        Ok(field::texts(walk(whole, at)?)?.join("\n"))
    }
}

fn as_row(number: usize, value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().ok_or_else(|| {
        anyhow!(
            "row {number}: expected an object such as {{\"input\": ..., \"output\": ...}}, found {}",
            field::kind(value)
        )
    })
}

/// Where the rows lie in a whole document.
fn locate<'v>(whole: &'v Value, at: Option<&str>) -> Result<&'v Value> {
    match (at, whole) {
        (Some(at), _) => walk(whole, at).with_context(|| "`rows_at`".to_string()),
        (None, Value::Object(fields)) => fields.get("examples").ok_or_else(|| {
            anyhow!(
                "expected a list of rows, or an object with `examples`; found an object with {}. \
                 Where the rows lie elsewhere, describe the file by a task TOML with `rows_at`",
                keys(fields)
            )
        }),
        (None, other) => Ok(other),
    }
}

fn children<'v>(rows: &'v Value, at: Option<&str>) -> Result<Vec<&'v Value>> {
    match rows {
        Value::Array(items) => Ok(items.iter().collect()),
        Value::Object(items) => Ok(items.values().collect()),
        other => {
            let place = at.map_or(String::new(), |at| format!(" at `{at}`"));
            bail!("expected rows as a list or an object{place}, found {}", field::kind(other))
        }
    }
}

/// Follows a dotted path of keys.
fn walk<'v>(value: &'v Value, path: &str) -> Result<&'v Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Object(fields) => {
            fields.get(key).ok_or_else(|| anyhow!("no key `{key}` (of `{path}`); there are {}", keys(fields)))
        }
        other => bail!("no key `{key}` (of `{path}`) in {}", field::kind(other)),
    })
}

/// The keys of an object, for error messages.
pub(crate) fn keys(fields: &Map<String, Value>) -> String {
    let keys: Vec<_> = fields.keys().map(|key| format!("`{key}`")).collect();
    if keys.is_empty() { "no keys".into() } else { keys.join(", ") }
}

/// The bytes of a file or a pipe. A device may have no end.
pub(crate) fn read_whole(path: &Path) -> Result<Vec<u8>> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = fs::metadata(path)?.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            bail!("it is a device; expected a file");
        }
    }
    Ok(fs::read(path)?)
}

/// How many times its compressed size a file of text may have, and what it may have in any case. Text is a tenth when
/// compressed, or a fiftieth; a file that was made to fill the memory, a thousandth.
const EXPANSION: u64 = 200;
const ALWAYS: u64 = 1 << 26;

/// Gzip is known by its first two bytes, so that a file's name does not matter.
fn decompress(bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    // Several gzip members in a row are one file, as `cat a.gz b.gz` makes them.
    let limit = (EXPANSION * bytes.len() as u64).max(ALWAYS);
    flate2::read::MultiGzDecoder::new(&bytes[..]).take(limit + 1).read_to_end(&mut plain)?;
    if plain.len() as u64 > limit {
        bail!("more than {limit} bytes when decompressed, {EXPANSION} times what it has; expected rows of text");
    }
    Ok(plain)
}

/// One JSON document, or one per line: more than one value means lines.
fn parse(text: &str) -> Result<Document> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let first = match values.next() {
        None => bail!("the file is empty; a task needs at least one row"),
        Some(first) => first.map_err(|error| anyhow!("not JSON: {error}"))?,
    };
    let (read, rest) = text.split_at(values.byte_offset());
    if rest.trim().is_empty() {
        return Ok(Document::Whole(first));
    }
    let line = read.lines().count();
    if read.trim().lines().count() > 1 || !rest.trim_start_matches([' ', '\t', '\r']).starts_with('\n') {
        bail!("not JSON: something follows the document, on line {line} or after it");
    }
    parse_lines(text)
}

/// A file of JSON lines may have one line only: a lone object is a row where it holds no others.
fn is_row(value: &Value) -> bool {
    let Value::Object(fields) = value else { return false };
    !fields.contains_key("examples")
        && fields.values().all(|value| match value {
            Value::Object(_) => false,
            Value::Array(items) => !items.iter().any(Value::is_object),
            _ => true,
        })
}

fn parse_lines(text: &str) -> Result<Document> {
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(line).map_err(|error| {
            // The parser counts lines within the line it was given.
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            anyhow!("line {} column {}: not JSON: {what}", i + 1, error.column())
        })?;
        rows.push(row);
    }
    Ok(Document::Lines(rows))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn source(bytes: &[u8]) -> Result<Source> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Source::read(file.path())
    }

    fn inputs(bytes: &[u8], at: Option<&str>) -> Vec<String> {
        let source = source(bytes).unwrap();
        let rows = source.rows(at).unwrap();
        rows.iter().map(|row| row["input"].to_string()).collect()
    }

    #[test]
    fn every_plain_container_gives_its_rows_in_file_order() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"{\"input\":2}\n\n{\"input\":1}\n").unwrap();
        let gzip = gzip.finish().unwrap();
        let containers: [&[u8]; 5] = [
            b"{\"input\":2}\n{\"input\":1}",
            b"[{\"input\":2},{\"input\":1}]",
            b"\xef\xbb\xbf{\"examples\":[{\"input\":2},{\"input\":1}]}",
            b"{\"metadata\":{},\"examples\":{\"2\":{\"input\":2},\"10\":{\"input\":1}}}",
            &gzip,
        ];
        for bytes in containers {
            assert_eq!(inputs(bytes, None), ["2", "1"]);
        }
        assert_eq!(inputs(b"{\"input\":2}", None), ["2"]);
        assert_eq!(inputs(b"{\"a\":{\"b\":[{\"input\":3}]}}", Some("a.b")), ["3"]);
    }

    #[test]
    fn bad_files_are_refused_by_place() {
        let message = |bytes: &[u8]| {
            let rows = source(bytes).and_then(|source| source.rows(None).map(|rows| rows.len()));
            format!("{:#}", rows.unwrap_err())
        };
        assert!(message(b"{\"input\":1}\n{\"input\":}\n").contains("line 2 column 10"));
        assert!(message(b"[{\"input\":1},\n{\"input\" 1}]").contains("line 2 column 10"));
        assert!(message(b"[]").contains("no rows"));
        assert!(message(b" \n").contains("empty"));
        assert!(message(b"[{\"input\":1}, 7]").contains("row 2: expected an object"));
        assert!(message(b"{\"Instances\":[{}]}").contains("an object with `Instances`"));
        assert!(message(b"\xff\xfe").contains("utf-8"));
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![b' '; ALWAYS as usize + 2]).unwrap();
        let error = format!("{:#}", source(&gzip.finish().unwrap()).err().unwrap());
        assert!(error.contains("when decompressed"), "{error}");
        #[cfg(unix)]
        assert!(format!("{:#}", Source::read(Path::new("/dev/zero")).err().unwrap()).contains("device"));
    }

    #[test]
    fn text_beside_the_rows_can_be_read() {
        let source = source(b"{\"Definition\":[\"One.\",\"Two.\"],\"Instances\":[{}]}").unwrap();
        assert_eq!(source.text_at("Definition").unwrap(), "One.\nTwo.");
        assert!(source.text_at("Definitions").unwrap_err().to_string().contains("`Instances`"));
    }
}
