//! Serde between a struct of plain values and text: each value as Rust displays it.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::ser::{Impossible, SerializeStruct, Serializer};
use serde::{Serialize, forward_to_deserialize_any};
use std::fmt::{self, Display};
use std::str::FromStr;

/// Settings as they are typed, by their keys.
pub(crate) type Pairs = Vec<(&'static str, String)>;

/// The fields of a struct with their values, in their order.
///
/// # Errors
/// If it is not a struct of plain values.
pub(crate) fn to_pairs(settings: &impl Serialize) -> Result<Pairs, String> {
    match settings.serialize(TextSerializer) {
        Ok(Text::Pairs(pairs)) => Ok(pairs),
        Ok(Text::Value(value)) => Err(format!("settings are structs of plain values, not {value}")),
        Err(error) => Err(error.0),
    }
}

/// The struct with these fields.
///
/// # Errors
/// A value that cannot be read: the message names its key, and says what was expected.
pub(crate) fn from_pairs<S: DeserializeOwned>(pairs: Vec<(&'static str, String)>) -> Result<S, String> {
    S::deserialize(SettingsText(pairs)).map_err(|error| error.0)
}

/// What is wrong with a value.
#[derive(Debug)]
struct ValueError(String);

impl Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ValueError {}

impl serde::ser::Error for ValueError {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl serde::de::Error for ValueError {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self(match expected {
            [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
            _ => expected.concat(),
        })
    }
}

/// The pairs of one method, to be read into its settings.
struct SettingsText(Vec<(&'static str, String)>);

impl<'de> Deserializer<'de> for SettingsText {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_map(PairAccess { left: self.0.into_iter(), value: None })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct PairAccess {
    left: std::vec::IntoIter<(&'static str, String)>,
    value: Option<(&'static str, String)>,
}

impl<'de> MapAccess<'de> for PairAccess {
    type Error = ValueError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ValueError> {
        self.value = self.left.next();
        let key = self.value.as_ref().map(|(key, _)| *key);
        key.map(|key| seed.deserialize(IntoDeserializer::<ValueError>::into_deserializer(key))).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ValueError> {
        let (key, value) = self.value.take().unwrap_or_default();
        let read = seed.deserialize(ValueText(&value));
        read.map_err(|expected| ValueError(format!("{key}={value} cannot be read ({expected})")))
    }
}

/// One value.
struct ValueText<'a>(&'a str);

impl ValueText<'_> {
    fn parse<T: FromStr<Err: Display>>(&self) -> Result<T, ValueError> {
        self.0.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserializer<'de> for ValueText<'_> {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_bool(self.parse()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_u64(self.parse()?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_f32(self.parse()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_f64(self.parse()?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        visitor.visit_enum(StrDeserializer::<ValueError>::new(self.0))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

/// What [`TextSerializer`] makes: a value, or the pairs of a struct.
enum Text {
    Value(String),
    Pairs(Vec<(&'static str, String)>),
}

/// Writes plain values as Rust displays them, and a struct of plain values as pairs.
struct TextSerializer;

impl TextSerializer {
    fn shown(value: impl Display) -> Result<Text, ValueError> {
        Ok(Text::Value(value.to_string()))
    }

    fn refused<T>() -> Result<T, ValueError> {
        Err(ValueError("settings are structs of plain values".to_owned()))
    }
}

type NoCompound = Impossible<Text, ValueError>;

impl Serializer for TextSerializer {
    type Ok = Text;
    type Error = ValueError;
    type SerializeSeq = NoCompound;
    type SerializeTuple = NoCompound;
    type SerializeTupleStruct = NoCompound;
    type SerializeTupleVariant = NoCompound;
    type SerializeMap = NoCompound;
    type SerializeStruct = PairWriter;
    type SerializeStructVariant = NoCompound;

    fn serialize_bool(self, value: bool) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_i8(self, value: i8) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_i16(self, value: i16) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_i32(self, value: i32) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_i64(self, value: i64) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_u8(self, value: u8) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_u16(self, value: u16) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_u32(self, value: u32) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_u64(self, value: u64) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_f32(self, value: f32) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_f64(self, value: f64) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_char(self, value: char) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_str(self, value: &str) -> Result<Text, ValueError> {
        Self::shown(value)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Text, ValueError> {
        Self::shown(name)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, value: &T) -> Result<Text, ValueError> {
        value.serialize(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<PairWriter, ValueError> {
        Ok(PairWriter(Vec::new()))
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<Text, ValueError> {
        Self::refused()
    }

    fn serialize_none(self) -> Result<Text, ValueError> {
        Self::refused()
    }

    fn serialize_some<T: ?Sized + Serialize>(self, _: &T) -> Result<Text, ValueError> {
        Self::refused()
    }

    fn serialize_unit(self) -> Result<Text, ValueError> {
        Self::refused()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Text, ValueError> {
        Self::refused()
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Text, ValueError> {
        Self::refused()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<NoCompound, ValueError> {
        Self::refused()
    }

    fn serialize_tuple(self, _: usize) -> Result<NoCompound, ValueError> {
        Self::refused()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<NoCompound, ValueError> {
        Self::refused()
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<NoCompound, ValueError> {
        Self::refused()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<NoCompound, ValueError> {
        Self::refused()
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<NoCompound, ValueError> {
        Self::refused()
    }
}

/// Collects the fields of a struct.
struct PairWriter(Vec<(&'static str, String)>);

impl SerializeStruct for PairWriter {
    type Ok = Text;
    type Error = ValueError;

    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), ValueError> {
        match value.serialize(TextSerializer)? {
            Text::Value(value) => self.0.push((key, value)),
            Text::Pairs(_) => return TextSerializer::refused(),
        }
        Ok(())
    }

    fn end(self) -> Result<Text, ValueError> {
        Ok(Text::Pairs(self.0))
    }
}
