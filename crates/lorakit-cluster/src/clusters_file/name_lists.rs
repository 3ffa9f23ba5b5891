//! JSON objects of lists of names, in the order of the file.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A JSON object of lists of names, in the order of the file. A repeated key, which JSON parsers accept, is an error.
#[derive(Default)]
pub(crate) struct NameLists(pub Vec<(String, Vec<String>)>);

impl Serialize for NameLists {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, list)| (name, list)))
    }
}

impl<'de> Deserialize<'de> for NameLists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NameListsVisitor)
    }
}

struct NameListsVisitor;

impl<'de> Visitor<'de> for NameListsVisitor {
    type Value = NameLists;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of cluster names and lists")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<NameLists, M::Error> {
        let mut table = NameLists::default();
        while let Some((name, list)) = map.next_entry::<String, Vec<String>>()? {
            if table.0.iter().any(|(other, _)| *other == name) {
                return Err(M::Error::custom(format!("the cluster `{name}` is given twice")));
            }
            table.0.push((name, list));
        }
        Ok(table)
    }
}
