//! `tojson` as transformers has it: Python's `json.dumps`, without escapes for HTML and for what is not ASCII.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// `value | tojson(indent=2)`; also with Python's `ensure_ascii`, `separators` and `sort_keys`.
pub(crate) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        None => options.get::<Option<Value>>("indent")?,
        given => given,
    };
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut layout = PythonLayout::new(indent.as_ref())?;
    layout.ensure_ascii = ensure_ascii.unwrap_or(false);
    if let Some([between, colon]) = separators.as_deref() {
        layout.between = between.clone();
        layout.colon = colon.clone();
    }
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, layout);
    let written = if sort_keys.unwrap_or(false) {
        serde_json::to_value(value).map(sorted).and_then(|value| value.serialize(&mut serializer))
    } else {
        value.serialize(&mut serializer)
    };
    written.map_err(|error| invalid(format!("tojson: {error}")))?;
    String::from_utf8(text).map_err(|error| invalid(error.to_string()))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The same value, the keys of its objects in order.
fn sorted(mut value: serde_json::Value) -> serde_json::Value {
    value.sort_all_objects();
    value
}

/// The most spaces of an indentation.
const WIDEST_INDENT: usize = 64;

/// Where `json.dumps` puts white space.
struct PythonLayout {
    /// None: everything on one line.
    indent: Option<String>,
    depth: usize,
    has_value: bool,
    between: String,
    colon: String,
    ensure_ascii: bool,
}

impl PythonLayout {
    fn new(indent: Option<&Value>) -> Result<PythonLayout, Error> {
        let indent = match indent {
            Some(text) if text.as_str().is_some() => text.as_str().map(str::to_string),
            Some(width) if !width.is_none() => {
                let width = usize::try_from(width.clone())?;
                if width > WIDEST_INDENT {
                    return Err(invalid(format!("tojson: an indent of {width}; expected at most {WIDEST_INDENT}")));
                }
                Some(" ".repeat(width))
            }
            _ => None,
        };
        let between = if indent.is_some() { "," } else { ", " };
        Ok(PythonLayout {
            indent,
            depth: 0,
            has_value: false,
            between: between.into(),
            colon: ": ".into(),
            ensure_ascii: false,
        })
    }

    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.new_line(writer)?;
        }
        self.has_value = true;
        writer.write_all(bracket)
    }

    fn begin_item<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.between.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonLayout {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        fragment.chars().try_for_each(|letter| match letter {
            ' '..='~' => write!(writer, "{letter}"),
            _ => letter.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}")),
        })
    }
}

/// A float as Python's `repr` writes it: with an exponent of two digits below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    if value != 0.0 && !(1e-4..1e16).contains(&value.abs()) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::jinja::environment::environment;

    #[test]
    fn json_is_laid_out_as_transformers_does() {
        // Each value printed by transformers 5.23 in Python.
        let tool = serde_json::json!({"type": "function", "function": {
            "name": "größe", "n": [1, 2.5, null, true, 1e22, 1e-7], "empty": [], "none": {},
            "q": "<a> & 'b'\n\u{7f}\t",
        }});
        for (expression, expected) in [
            (
                r##"tool | tojson"##,
                "{\"type\": \"function\", \"function\": {\"name\": \"größe\", \"n\": [1, 2.5, null, true, 1e+22, 1e-07], \"empty\": [], \"none\": {}, \"q\": \"<a> & 'b'\\n\u{7f}\\t\"}}",
            ),
            (
                r##"tool | tojson(indent=2)"##,
                "{\n  \"type\": \"function\",\n  \"function\": {\n    \"name\": \"größe\",\n    \"n\": [\n      1,\n      2.5,\n      null,\n      true,\n      1e+22,\n      1e-07\n    ],\n    \"empty\": [],\n    \"none\": {},\n    \"q\": \"<a> & 'b'\\n\u{7f}\\t\"\n  }\n}",
            ),
            (
                r##"tool | tojson(ensure_ascii=true)"##,
                r##"{"type": "function", "function": {"name": "gr\u00f6\u00dfe", "n": [1, 2.5, null, true, 1e+22, 1e-07], "empty": [], "none": {}, "q": "<a> & 'b'\n\u007f\t"}}"##,
            ),
            (
                r##"tool | tojson(sort_keys=true, separators=[',', ':'])"##,
                "{\"function\":{\"empty\":[],\"n\":[1,2.5,null,true,1e+22,1e-07],\"name\":\"größe\",\"none\":{},\"q\":\"<a> & 'b'\\n\u{7f}\\t\"},\"type\":\"function\"}",
            ),
            (r##"[] | tojson(indent=4)"##, r##"[]"##),
            (r##"'é' | tojson"##, r##""é""##),
        ] {
            let tool = minijinja::Value::from(minijinja::value::Serde(&tool));
            let rendered = environment().render_str(&format!("{{{{ {expression} }}}}"), minijinja::context! { tool });
            assert_eq!(rendered.unwrap(), expected, "{expression}");
        }
    }
}
