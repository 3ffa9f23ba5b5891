//! A file of rows: read and parsed.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::source::document::Document;
use crate::source::file_content::FileContent;
use crate::source::file_formats;

/// A file of rows.
pub(crate) struct DataFile {
    pub path: PathBuf,
    /// The hash of the file's bytes as they are on disk, in hexadecimal: what `sha256sum` prints.
    pub sha256: String,
    pub document: Document,
}

impl DataFile {
    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<DataFile> {
        let FileContent { sha256, bytes } = FileContent::read(path)?;
        Ok(DataFile { path: path.into(), sha256, document: file_formats::parse(path, &bytes)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::source::gzip;
    use std::io::Write;

    fn read(bytes: &[u8]) -> Result<DataFile> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        DataFile::read(file.path())
    }

    fn inputs(bytes: &[u8], at: Option<&str>) -> Vec<String> {
        let file = read(bytes).unwrap();
        let rows = file.document.rows(at).unwrap();
        rows.iter().map(|row| row.fields["input"].to_string()).collect()
    }

    #[test]
    fn every_file_format_gives_its_rows_in_file_order() {
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
        // Python's json writes NaN and infinities, which JSON does not have.
        let python: [&[u8]; 3] = [
            b"{\"input\":2,\"x\":NaN}\n{\"input\":1,\"x\":3}",
            b"{\"input\":2}\n{\"input\":1,\"x\":-Infinity}",
            b"[{\"input\":2,\"x\":NaN},{\"input\":1,\"x\":[Infinity]}]",
        ];
        for bytes in python {
            assert_eq!(inputs(bytes, None), ["2", "1"]);
        }
        assert_eq!(inputs(b"{\"input\":2}", None), ["2"]);
        assert_eq!(inputs(b"{\"a\":{\"b\":[{\"input\":3}]}}", Some("a.b")), ["3"]);
    }

    #[test]
    fn errors_name_the_line_and_what_was_found() {
        let message = |bytes: &[u8]| {
            let rows = read(bytes).and_then(|file| file.document.rows(None).map(|rows| rows.len()));
            format!("{:#}", anyhow::Error::from(rows.unwrap_err()))
        };
        assert!(message(b"{\"input\":1}\n{\"input\":}\n").contains("line 2 column 10"));
        assert!(message(b"[{\"input\":1},\n{\"input\" 1}]").contains("line 2 column 10"));
        assert!(message(b"[]").contains("no rows"));
        assert!(message(b" \n").contains("empty"));
        assert!(message(b"[{\"input\":1}, 7]").contains("row 2: expected an object"));
        assert!(message(b"\xff").contains("utf-8"));
        assert!(message(b"\xff\xfe{\0}\0").contains("UTF-16"));
        assert!(message(b"BZh91AY&SY").contains("bzip2"));
        assert!(message(b"PK\x03\x04").contains("ZIP archive"));
    }

    #[test]
    fn endless_and_exploding_files_are_refused() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![b' '; gzip::ALWAYS_ALLOWED as usize + 2]).unwrap();
        let message = |result: Result<DataFile>| format!("{:#}", anyhow::Error::from(result.err().unwrap()));
        let error = message(read(&encoder.finish().unwrap()));
        assert!(error.contains("when decompressed"), "{error}");
        #[cfg(unix)]
        assert!(message(DataFile::read(Path::new("/dev/zero"))).contains("device"));
    }

    #[test]
    fn text_beside_the_rows_can_be_read() {
        let file = read(b"{\"Definition\":[\"One.\",\"Two.\"],\"Instances\":[{}]}").unwrap();
        assert_eq!(file.document.text_at("Definition").unwrap(), "One.\nTwo.");
        assert!(file.document.text_at("Definitions").unwrap_err().to_string().contains("`Instances`"));
    }
}
