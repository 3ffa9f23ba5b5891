//! The values of Arrow's columns as JSON, as a JSON file of the same rows has them.

use arrow_array::cast::AsArray;
use arrow_array::temporal_conversions as temporal;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use chrono::{NaiveDateTime, NaiveTime, Timelike};
use serde_json::{Map, Number, Value};
use std::sync::Arc;

use crate::error::{At, Result, TaskError};
use crate::source::size_budget::SizeBudget;
use crate::source::source_value::SourceValue;

/// Appends the rows of a batch.
pub(crate) fn append_rows(batch: &RecordBatch, budget: &mut SizeBudget, rows: &mut Vec<SourceValue>) -> Result<()> {
    let schema = batch.schema();
    let unreadable = unreadable_columns(&schema);
    for row in 0..batch.num_rows() {
        budget.spend(0)?;
        let mut fields = Map::new();
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            let value = value(column, row, budget).at(|| format!("column `{}`", field.name()))?;
            let value = value.map(|value| if is_json(field) { of_column(field.name(), value) } else { value });
            fields.extend(value.map(|value| (field.name().clone(), value)));
        }
        let unreadable = unreadable.clone();
        rows.push(SourceValue { null_padded: true, unreadable, ..SourceValue::from(Value::Object(fields)) });
    }
    Ok(())
}

/// The columns whose values are left out, each with its type; None if there are none.
fn unreadable_columns(schema: &Schema) -> Option<Arc<str>> {
    let columns = schema.fields().iter().filter(|field| is_unreadable(field.data_type()));
    let columns: Vec<String> = columns.map(|field| format!("`{}` ({})", field.name(), field.data_type())).collect();
    (!columns.is_empty()).then(|| columns.join(", ").into())
}

/// Whether values of a type have no counterpart in JSON, or are not read.
fn is_unreadable(kind: &DataType) -> bool {
    matches!(
        kind,
        DataType::Duration(_)
            | DataType::Interval(_)
            | DataType::ListView(_)
            | DataType::LargeListView(_)
            | DataType::RunEndEncoded(_, _)
            | DataType::Union(_, _)
    )
}

/// What marks texts of JSON, which `datasets` writes for values of mixed types, in Arrow and by the Parquet reader.
const EXTENSION: (&str, &str) = ("ARROW:extension:name", "arrow.json");

fn is_json(field: &Field) -> bool {
    field.metadata().get(EXTENSION.0).is_some_and(|name| name == EXTENSION.1)
}

/// What a text of JSON says; a text that is not JSON is itself.
fn of_json(value: Value) -> Value {
    let parsed = value.as_str().and_then(|text| SourceValue::parse(text).ok());
    parsed.map_or(value, |parsed| parsed.value)
}

/// The columns that may be messages or texts.
const ANSWERS: [&str; 4] = ["prompt", "completion", "chosen", "rejected"];

/// A column of JSON: messages are read, and other values are texts as they stand, such as an answer in JSON. Columns that
/// are never texts are parsed where they are read.
fn of_column(name: &str, value: Value) -> Value {
    if !ANSWERS.contains(&name) {
        return value;
    }
    let is_message = |value: &Value| value.get("role").or_else(|| value.get("from")).is_some_and(Value::is_string);
    match of_json(value.clone()) {
        Value::Array(items) if !items.is_empty() && items.iter().all(is_message) => Value::Array(items),
        message if is_message(&message) => message,
        _ => value,
    }
}

/// The value at `row` of a column; None for bytes that are no text, such as an image, and for values of a type that is not
/// read: no row format or template reads them.
fn value(column: &dyn Array, row: usize, budget: &mut SizeBudget) -> Result<Option<Value>> {
    budget.spend(0)?;
    if is_unreadable(column.data_type()) {
        return Ok(None);
    }
    if column.is_null(row) {
        return Ok(Some(Value::Null));
    }
    match column.data_type() {
        DataType::Null => Ok(Some(Value::Null)),
        DataType::Boolean => Ok(Some(column.as_boolean().value(row).into())),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let key = dictionary.normalized_keys().get(row).copied().unwrap_or(usize::MAX);
            match key < dictionary.values().len() {
                true => value(dictionary.values(), key, budget),
                false => Err(TaskError::Data("a dictionary key has no value".to_string())),
            }
        }
        DataType::List(item) => list(item, &column.as_list::<i32>().value(row), budget).map(Some),
        DataType::LargeList(item) => list(item, &column.as_list::<i64>().value(row), budget).map(Some),
        DataType::FixedSizeList(item, _) => list(item, &column.as_fixed_size_list().value(row), budget).map(Some),
        DataType::Struct(_) => object(column, row, budget).map(Some),
        DataType::Map(_, _) => map(column, row, budget).map(Some),
        kind if kind.is_numeric() => number(column, row).map(Some),
        kind if kind.is_temporal() => time(column, row).map(Some),
        _ => text(column, row, budget),
    }
}

/// The value of a field within another: a text of JSON is what it says.
fn nested(field: &Field, values: &dyn Array, row: usize, budget: &mut SizeBudget) -> Result<Option<Value>> {
    let value = value(values, row, budget)?;
    Ok(if is_json(field) { value.map(of_json) } else { value })
}

fn list(field: &Field, items: &ArrayRef, budget: &mut SizeBudget) -> Result<Value> {
    // A list keeps the places of the others.
    let item = |item| -> Result<Value> { Ok(nested(field, items, item, budget)?.unwrap_or_default()) };
    (0..items.len()).map(item).collect::<Result<Vec<_>>>().map(Value::Array)
}

fn object(column: &dyn Array, row: usize, budget: &mut SizeBudget) -> Result<Value> {
    let column = column.as_struct();
    let mut fields = Map::new();
    for (field, values) in column.fields().iter().zip(column.columns()) {
        budget.spend(field.name().len())?;
        let value = nested(field, values, row, budget).at(|| format!("`{}`", field.name()))?;
        fields.extend(value.map(|value| (field.name().clone(), value)));
    }
    Ok(Value::Object(fields))
}

/// A map as an object, whatever its keys are.
fn map(column: &dyn Array, row: usize, budget: &mut SizeBudget) -> Result<Value> {
    let entries = column.as_map().value(row);
    let ([keys, values], [_, field]) = (entries.columns(), entries.fields().as_ref()) else {
        return Err(TaskError::Data("a map without keys and values".to_string()));
    };
    let mut fields = Map::new();
    for entry in 0..entries.len() {
        let key = match value(keys, entry, budget)? {
            Some(Value::String(key)) => key,
            Some(other) => other.to_string(),
            None => continue,
        };
        fields.extend(nested(field, values, entry, budget)?.map(|value| (key, value)));
    }
    Ok(Value::Object(fields))
}

fn number(column: &dyn Array, row: usize) -> Result<Value> {
    Ok(match column.data_type() {
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => short_float(column.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::Float32 => short_float(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        // A decimal keeps its zeros, as a number in JSON does.
        DataType::Decimal32(_, _) => column.as_primitive::<Decimal32Type>().value_as_string(row).into(),
        DataType::Decimal64(_, _) => column.as_primitive::<Decimal64Type>().value_as_string(row).into(),
        DataType::Decimal128(_, _) => column.as_primitive::<Decimal128Type>().value_as_string(row).into(),
        DataType::Decimal256(_, _) => column.as_primitive::<Decimal256Type>().value_as_string(row).into(),
        other => return Err(unsupported(other)),
    })
}

/// A float of 32 bits by its own shortest text: 0.1, not 0.10000000149011612.
fn short_float(value: f32) -> Value {
    let shortest = value.to_string().parse::<f64>().ok().and_then(Number::from_f64);
    shortest.map_or(Value::Null, Value::Number)
}

fn text(column: &dyn Array, row: usize, budget: &mut SizeBudget) -> Result<Option<Value>> {
    let bytes = match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).as_bytes(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).as_bytes(),
        DataType::Utf8View => column.as_string_view().value(row).as_bytes(),
        DataType::Binary => column.as_binary::<i32>().value(row),
        DataType::LargeBinary => column.as_binary::<i64>().value(row),
        DataType::BinaryView => column.as_binary_view().value(row),
        DataType::FixedSizeBinary(_) => column.as_fixed_size_binary().value(row),
        other => return Err(unsupported(other)),
    };
    budget.spend(bytes.len())?;
    Ok(std::str::from_utf8(bytes).ok().map(Value::from))
}

/// Dates and times as Python's `isoformat` writes them.
fn time(column: &dyn Array, row: usize) -> Result<Value> {
    let moment = |time: Option<NaiveDateTime>, zone: bool| {
        time.map(|time| format!("{}T{}{}", time.date(), iso_time(time.time()), if zone { "+00:00" } else { "" }))
    };
    let text = match column.data_type() {
        DataType::Date32 => temporal::date32_to_datetime(column.as_primitive::<Date32Type>().value(row))
            .map(|time| time.date().to_string()),
        DataType::Date64 => temporal::date64_to_datetime(column.as_primitive::<Date64Type>().value(row))
            .map(|time| time.date().to_string()),
        // With a zone, Arrow counts from the epoch in UTC.
        DataType::Timestamp(unit, zone) => moment(timestamp(column, *unit, row), zone.is_some()),
        DataType::Time32(TimeUnit::Second) => {
            temporal::time32s_to_time(column.as_primitive::<Time32SecondType>().value(row)).map(iso_time)
        }
        DataType::Time32(_) => {
            temporal::time32ms_to_time(column.as_primitive::<Time32MillisecondType>().value(row)).map(iso_time)
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            temporal::time64us_to_time(column.as_primitive::<Time64MicrosecondType>().value(row)).map(iso_time)
        }
        DataType::Time64(_) => {
            temporal::time64ns_to_time(column.as_primitive::<Time64NanosecondType>().value(row)).map(iso_time)
        }
        other => return Err(unsupported(other)),
    };
    text.map(Value::String).ok_or_else(|| TaskError::Data("a date or time beyond the calendar".to_string()))
}

fn timestamp(column: &dyn Array, unit: TimeUnit, row: usize) -> Option<NaiveDateTime> {
    match unit {
        TimeUnit::Second => temporal::timestamp_s_to_datetime(column.as_primitive::<TimestampSecondType>().value(row)),
        TimeUnit::Millisecond => {
            temporal::timestamp_ms_to_datetime(column.as_primitive::<TimestampMillisecondType>().value(row))
        }
        TimeUnit::Microsecond => {
            temporal::timestamp_us_to_datetime(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        TimeUnit::Nanosecond => {
            temporal::timestamp_ns_to_datetime(column.as_primitive::<TimestampNanosecondType>().value(row))
        }
    }
}

/// The fraction has six digits, nine if it needs them, and is left out if it is zero.
fn iso_time(time: NaiveTime) -> String {
    let nanoseconds = time.nanosecond();
    let whole = time.format("%H:%M:%S");
    match nanoseconds {
        0 => whole.to_string(),
        _ if nanoseconds.is_multiple_of(1000) => format!("{whole}.{:06}", nanoseconds / 1000),
        _ => format!("{whole}.{nanoseconds:09}"),
    }
}

fn unsupported(kind: &DataType) -> TaskError {
    TaskError::Data(format!("values of Arrow's type {kind} cannot be read; expected texts, numbers, lists or structs"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::{BinaryArray, DurationSecondArray, StringArray, StructArray};
    use serde_json::json;
    use std::collections::HashMap;

    /// As `datasets` keeps images.
    #[test]
    fn bytes_that_are_no_text_are_left_out() {
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&b"\x89PNG\xff"[..], &b"abc"[..]]));
        let path: ArrayRef = Arc::new(StringArray::from(vec!["a.png", "b.txt"]));
        let field = |name: &str, kind: DataType| Arc::new(Field::new(name, kind, true));
        let image = StructArray::from(vec![
            (field("bytes", DataType::Binary), bytes.clone()),
            (field("path", DataType::Utf8), path.clone()),
        ]);
        let columns: [(&str, ArrayRef); 3] = [("input", path), ("image", Arc::new(image)), ("raw", bytes)];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut rows = Vec::new();
        append_rows(&batch, &mut SizeBudget::of_file(1), &mut rows).unwrap();
        assert_eq!(rows[0].value, json!({"input": "a.png", "image": {"path": "a.png"}}));
        let text = json!({"input": "b.txt", "image": {"bytes": "abc", "path": "b.txt"}, "raw": "abc"});
        assert_eq!(rows[1].value, text);
        // The reader of columns is told so.
        let document = crate::source::document::Document::Rows(rows);
        let read = document.rows(None).unwrap();
        let names = crate::column_names::ColumnNames::default();
        assert!(crate::row_format::columns::Columns::new(read[0], &names, None).unwrap().is_null_padded());
    }

    /// As `datasets` keeps values of mixed types.
    #[test]
    fn nested_texts_of_json_are_what_they_say() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![r#"{"city": "Rome", "n": null}"#]));
        let metadata = HashMap::from([(EXTENSION.0.to_owned(), EXTENSION.1.to_owned())]);
        let json = |name: &str| Field::new(name, DataType::Utf8, true).with_metadata(metadata.clone());
        let call = StructArray::from(vec![(Arc::new(json("arguments")), text.clone())]);
        let messages: ArrayRef = Arc::new(StringArray::from(vec![r#"[{"role": "user", "content": "a"}]"#]));
        let fields =
            [Field::new("call", call.data_type().clone(), true), json("output"), json("prompt"), json("chosen")];
        let columns: Vec<ArrayRef> = vec![Arc::new(call), text.clone(), messages, text];
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap();
        let mut rows = Vec::new();
        append_rows(&batch, &mut SizeBudget::of_file(1), &mut rows).unwrap();
        let expected = json!({"call": {"arguments": {"city": "Rome", "n": null}}, "output": r#"{"city": "Rome", "n": null}"#,
            "prompt": [{"role": "user", "content": "a"}], "chosen": r#"{"city": "Rome", "n": null}"#});
        assert_eq!(rows[0].value, expected);
    }

    #[test]
    fn a_column_of_an_unreadable_type_is_named_where_it_is_asked_for() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let times: ArrayRef = Arc::new(DurationSecondArray::from(vec![1]));
        let batch = RecordBatch::try_from_iter([("input", text), ("d", times)]).unwrap();
        let mut rows = Vec::new();
        append_rows(&batch, &mut SizeBudget::of_file(1), &mut rows).unwrap();
        assert_eq!(rows[0].value, json!({"input": "a"}));
        let document = crate::source::document::Document::Rows(rows);
        let row = document.rows(None).unwrap()[0];
        let columns = |names: &str| crate::row_format::columns::Columns::new(row, &names.parse().unwrap(), None);
        for error in [columns("output=d").err().unwrap(), columns("input=input").unwrap().missing("output")] {
            assert!(error.to_string().contains("`d` (Duration(s))"), "{error}");
        }
    }
}
