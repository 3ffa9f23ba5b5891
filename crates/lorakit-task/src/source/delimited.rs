//! CSV and TSV: a header line, then one row on each line; a quoted cell may contain delimiters and line breaks.

use std::path::Path;

use serde_json::{Map, Number, Value};

use crate::error::{Result, TaskError};
use crate::source::document::Document;
use crate::source::file_extension::has_extension;
use crate::source::file_format::FileFormat;
use crate::source::json::text;

/// A file of cells with a delimiter between them. Its content does not say so, hence its extension decides.
pub(crate) struct Delimited {
    extension: &'static str,
    delimiter: u8,
}

/// Comma-separated values.
pub(crate) static CSV: Delimited = Delimited { extension: ".csv", delimiter: b',' };

/// Tab-separated values.
pub(crate) static TSV: Delimited = Delimited { extension: ".tsv", delimiter: b'\t' };

impl FileFormat for Delimited {
    fn extension(&self) -> &'static str {
        self.extension
    }

    fn parse(&self, path: &Path, content: &[u8]) -> Result<Option<Document>> {
        if !has_extension(&path.to_string_lossy(), self.extension) {
            return Ok(None);
        }
        let rows = parse(text(content)?, self.delimiter)?;
        Ok(Some(Document::Rows(rows.into_iter().map(|row| Value::Object(row).into()).collect())))
    }
}

fn parse(text: &str, delimiter: u8) -> Result<Vec<Map<String, Value>>> {
    if let Some(line) = open_quote(text, delimiter) {
        return Err(TaskError::Data(format!(
            "line {line} opens a quoted cell that does not end; expected a closing quote (a cell that begins with a quote is \
             quoted as a whole, with every quote in it written twice)"
        )));
    }
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let refused = |error: csv::Error| TaskError::Data(format!("not a table of cells: {error}"));
    let names: Vec<String> = reader.headers().map_err(refused)?.iter().map(str::to_string).collect();
    if let [one] = names.as_slice()
        && let Some(other) =
            [';', '\t', ','].into_iter().find(|&other| other != char::from(delimiter) && one.contains(other))
    {
        return Err(TaskError::Data(format!(
            "the header is the one column `{one}`: its cells seem to be separated by {other:?}; expected {:?}",
            char::from(delimiter)
        )));
    }
    if let Some(twice) = names.iter().enumerate().find_map(|(i, name)| names[..i].contains(name).then_some(name)) {
        return Err(TaskError::Data(format!(
            "two columns are named `{twice}`; expected a header line with a name for each"
        )));
    }
    let records = reader.records().collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let cells = |column: usize| records.iter().filter_map(move |record| record.get(column));
    let is_number: Vec<bool> =
        (0..names.len()).map(|column| cells(column).all(|cell| number(cell).is_some())).collect();
    let row = |record: &csv::StringRecord| {
        let cells = names.iter().zip(record).zip(&is_number);
        let value = |cell: &str, is_number: &bool| match is_number.then(|| number(cell)).flatten() {
            Some(number) => Value::Number(number),
            None => Value::from(cell),
        };
        cells.map(|((name, cell), is_number)| (name.clone(), value(cell, is_number))).collect()
    };
    Ok(records.iter().map(row).collect())
}

/// The line of the quote that opens a cell in which the file ends, if it does: the reader takes the rest for that cell.
fn open_quote(text: &str, delimiter: u8) -> Option<usize> {
    enum Place {
        Start,
        Plain,
        Quoted {
            opened: usize,
        },
        /// After a quote in a quoted cell: it ends the cell, or is the first of two.
        Quote {
            opened: usize,
        },
    }
    let (mut line, mut place) = (1, Place::Start);
    for byte in text.bytes() {
        place = match (place, byte) {
            (Place::Start, b'"') => Place::Quoted { opened: line },
            (Place::Quoted { opened }, b'"') => Place::Quote { opened },
            (Place::Quoted { opened }, _) | (Place::Quote { opened }, b'"') => Place::Quoted { opened },
            (_, b'\n' | b'\r') => Place::Start,
            (_, byte) if byte == delimiter => Place::Start,
            _ => Place::Plain,
        };
        line += usize::from(byte == b'\n');
    }
    match place {
        Place::Quoted { opened } => Some(opened),
        _ => None,
    }
}

/// The number that a cell is, if JSON writes it so: 007 and 2.50 are texts. A column is of numbers if all its cells are.
fn number(cell: &str) -> Option<Number> {
    serde_json::from_str::<Number>(cell).ok().filter(|number| number.to_string() == cell)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn rows(text: &str, delimiter: u8) -> Value {
        Value::from_iter(parse(text, delimiter).unwrap())
    }

    #[test]
    fn quoted_cells_may_contain_delimiters_quotes_and_line_breaks() {
        let text = "input,output\r\n\"a, \"\"b\"\"\nc\",d\r\n\r\n,e\r\n";
        let expected = json!([{"input": "a, \"b\"\nc", "output": "d"}, {"input": "", "output": "e"}]);
        assert_eq!(rows(text, b','), expected);
        assert_eq!(rows("input\toutput\na, b\tc\n", b'\t'), json!([{"input": "a, b", "output": "c"}]));
    }

    #[test]
    fn a_column_is_of_numbers_if_all_its_cells_are() {
        let text = "a,b,c,d\n1,1,007,2.5\n-2,x,8,2.50\n";
        let expected = json!([{"a": 1, "b": "1", "c": "007", "d": "2.5"}, {"a": -2, "b": "x", "c": "8", "d": "2.50"}]);
        assert_eq!(rows(text, b','), expected);
    }

    #[test]
    fn errors_name_the_line() {
        let message = |text| parse(text, b',').unwrap_err().to_string();
        assert!(message("a,b\n1,2\n3\n").contains("line: 3"), "{}", message("a,b\n1,2\n3\n"));
        assert!(message("a,a\n1,2\n").contains("two columns are named `a`"));
        for (open, line) in
            [("a,b\nq1,a1\nq2,\"a2\nq3,a3\n", 3), ("a,b\n\"x\ny\",1\n\"\"\"z,\n2", 4), ("\"a,b\n1,2\n", 1)]
        {
            assert!(
                message(open).contains(&format!("line {line} opens a quoted cell that does not end")),
                "{}",
                message(open)
            );
        }
        assert_eq!(rows("a,b\nx\"\"y,\"z\"\n", b','), json!([{"a": "x\"\"y", "b": "z"}]));
        let semicolons = message("input;output\na;b\n");
        assert!(
            semicolons.contains("`input;output`: its cells seem to be separated by ';'; expected ','"),
            "{semicolons}"
        );
    }
}
