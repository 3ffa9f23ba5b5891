//! The values of settings as files and `--set` write them.

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serializer};
use std::fmt::{self, Formatter};

/// A text, or a list of texts, as PEFT's configs have them too, joined by commas.
pub(crate) fn text_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Given {
        Text(String),
        List(Vec<String>),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::Text(text) => text,
        Given::List(list) => list.join(","),
    })
}

/// A whole number, which a file may write as 3.0.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, formatter: &mut Formatter) -> fmt::Result {
        formatter.write_str("a whole number that is not negative")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Count, E> {
        usize::try_from(value).map(Count).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Count, E> {
        usize::try_from(value).map(Count).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Count, E> {
        match is_whole(value) {
            true => Ok(Count(value as usize)),
            false => Err(E::invalid_value(Unexpected::Float(value), &self)),
        }
    }
}

/// Reads a whole number.
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Count::deserialize(deserializer).map(|count| count.0)
}

/// Reads a whole number, or none.
pub(crate) fn optional_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(Option::<Count>::deserialize(deserializer)?.map(|count| count.0))
}

/// Writes a whole number as an integer: so do records of versions that took no other.
pub(crate) fn whole_if_possible<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match is_whole(*number) {
        true => serializer.serialize_u64(*number as u64),
        false => serializer.serialize_f64(*number),
    }
}

/// Whether a number is whole, not negative, and below the largest up to which every whole number is a float.
pub(crate) fn is_whole(number: f64) -> bool {
    number.fract() == 0.0 && (0.0..=(1u64 << 53) as f64).contains(&number)
}
