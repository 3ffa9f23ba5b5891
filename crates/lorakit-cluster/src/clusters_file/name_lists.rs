//! JSON objects in the order of the file, such as lists of names.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Lists of names by cluster.
pub(crate) type NameLists = JsonEntries<Vec<String>>;

/// The entries of a JSON object, in the order of the file. A repeated key, which JSON parsers accept, is kept: whoever
/// reads the entries must refuse it.
pub(crate) struct JsonEntries<T>(pub Vec<(String, T)>);

impl<T> Default for JsonEntries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Serialize> Serialize for JsonEntries<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonEntries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(JsonEntriesVisitor(PhantomData))
    }
}

struct JsonEntriesVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for JsonEntriesVisitor<T> {
    type Value = JsonEntries<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of cluster names and lists")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<JsonEntries<T>, M::Error> {
        let mut entries = JsonEntries::default();
        while let Some(entry) = map.next_entry()? {
            entries.0.push(entry);
        }
        Ok(entries)
    }
}
