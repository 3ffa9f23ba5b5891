//! The file clusters.json: which experts, and so which tasks, belong together.
//!
//! `{"method": "mbc", "clusters": {"c0": ["EXPERT", ...], ...}, "tasks": {"c0": ["TASK", ...], ...}, "settings": {...}}`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use lorakit_format::atomic::write_file;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::{Error, Partition, Result};

/// How clusters were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By the similarity of the experts' parameters, [`mbc`](crate::mbc()).
    Mbc,
    /// By chance, [`random`](crate::random()).
    Random,
    /// By embeddings from elsewhere, [`embedding`](crate::embedding()).
    Embedding,
    /// By hand, or by someone else's program.
    Given,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Its name, which the expert trained on it will bear.
    pub name: String,
    /// Its members, at least one.
    pub experts: Vec<String>,
    /// The tasks of its members, each once, sorted; empty where the file did not say.
    pub tasks: Vec<String>,
}

/// The clusters of a library: every expert in at most one, none empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Clusters {
    method: Method,
    clusters: Vec<Cluster>,
    settings: Map<String, Value>,
}

impl Clusters {
    /// Names the clusters of a partition `c0`, `c1`, ..., the largest first.
    ///
    /// `tasks` gives the tasks that an expert was trained on; `settings` is what the method was told, for the record.
    pub fn new(
        method: Method,
        partition: &Partition,
        tasks: impl Fn(&str) -> Vec<String>,
        settings: Map<String, Value>,
    ) -> Self {
        let cluster = |(label, members): (usize, Vec<usize>)| {
            let experts: Vec<String> = members.iter().map(|at| partition.names()[*at].clone()).collect();
            let tasks: BTreeSet<String> = experts.iter().flat_map(|expert| tasks(expert)).collect();
            Cluster { name: format!("c{label}"), experts, tasks: tasks.into_iter().collect() }
        };
        let clusters = partition.members().into_iter().enumerate().map(cluster).collect();
        Self { method, clusters, settings }
    }

    /// Clusters as they are given, checked.
    ///
    /// # Errors
    /// If there is no cluster, one is empty or named twice, or an expert occurs twice.
    pub fn checked(method: Method, clusters: Vec<Cluster>, settings: Map<String, Value>) -> Result<Self> {
        let mut names = BTreeSet::new();
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        let refuse = |message: String| Err(Error::Inconsistent(message));
        if clusters.is_empty() {
            return refuse("there are no clusters; expected at least one".to_owned());
        }
        for Cluster { name, experts, .. } in &clusters {
            if name.is_empty() || !names.insert(name) {
                return refuse(format!(
                    "the cluster name `{name}` is empty or given twice; expected one name per cluster"
                ));
            }
            if experts.is_empty() {
                return refuse(format!("cluster `{name}` has no experts; expected at least one, or no such cluster"));
            }
            for expert in experts {
                if let Some(other) = owners.insert(expert, name) {
                    return refuse(format!(
                        "`{expert}` is in cluster `{other}` and in `{name}`; expected it in one, once"
                    ));
                }
            }
        }
        Ok(Self { method, clusters, settings })
    }

    /// Reads clusters.json, in our form or in mttl's. Unknown keys, doubled keys and contradictions are errors.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid clusters file.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |message: String| Error::File { path: path.to_owned(), message };
        let text = lorakit_format::read_text(path)?;
        if let Some(clusters) = Self::of_mttl(&text) {
            return clusters.map_err(|error| refuse(error.to_string()));
        }
        serde_json::from_str(&text).map_err(|error| {
            refuse(format!("{error}; expected {{\"method\": ..., \"clusters\": {{NAME: [EXPERT, ...]}}, \"tasks\": {{NAME: [TASK, ...]}}}}"))
        })
    }

    /// Writes clusters.json: whole or not at all, and the same bytes for the same clusters.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let refuse = |message: String| Error::File { path: path.to_owned(), message };
        let mut text = serde_json::to_string_pretty(self).map_err(|error| refuse(error.to_string()))?;
        text.push('\n');
        Ok(write_file(path, text.as_bytes())?)
    }

    /// How the clusters were found.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The clusters, in the order of the file.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// What the method was told.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// The experts with their clusters, to be compared with another partition.
    pub fn partition(&self) -> Partition {
        let labelled = self.clusters.iter().enumerate();
        let mut labelled: Vec<(String, usize)> = labelled
            .flat_map(|(label, cluster)| cluster.experts.iter().map(move |expert| (expert.clone(), label)))
            .collect();
        labelled.sort();
        let (names, labels): (Vec<String>, Vec<usize>) = labelled.into_iter().unzip();
        Partition::new(&names, &labels)
    }
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Wire {
    method: Method,
    clusters: Table,
    #[serde(default)]
    tasks: Table,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    settings: Map<String, Value>,
}

impl From<Clusters> for Wire {
    fn from(clusters: Clusters) -> Self {
        let (mut experts, mut tasks) = (Table::default(), Table::default());
        for cluster in clusters.clusters {
            experts.0.push((cluster.name.clone(), cluster.experts));
            tasks.0.push((cluster.name, cluster.tasks));
        }
        Self { method: clusters.method, clusters: experts, tasks, settings: clusters.settings }
    }
}

impl TryFrom<Wire> for Clusters {
    type Error = Error;

    fn try_from(wire: Wire) -> Result<Self> {
        let mut tasks: BTreeMap<String, Vec<String>> = wire.tasks.0.into_iter().collect();
        let cluster = |(name, experts): (String, Vec<String>)| {
            let tasks = tasks.remove(&name).unwrap_or_default();
            Cluster { name, experts, tasks }
        };
        let clusters = wire.clusters.0.into_iter().map(cluster).collect();
        if let Some(name) = tasks.keys().next() {
            return Err(Error::Inconsistent(format!("`tasks` names the cluster `{name}`, which `clusters` does not")));
        }
        Self::checked(wire.method, clusters, wire.settings)
    }
}

/// A JSON object of lists in the order of the file. A doubled key, which JSON readers let pass, is an error.
#[derive(Default)]
pub(crate) struct Table(pub Vec<(String, Vec<String>)>);

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, list)| (name, list)))
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TableVisitor)
    }
}

struct TableVisitor;

impl<'de> Visitor<'de> for TableVisitor {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of cluster names and lists")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Table, M::Error> {
        let mut table = Table::default();
        while let Some((name, list)) = map.next_entry::<String, Vec<String>>()? {
            if table.0.iter().any(|(other, _)| *other == name) {
                return Err(M::Error::custom(format!("the cluster `{name}` is given twice")));
            }
            table.0.push((name, list));
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn clusters() -> Clusters {
        let names: Vec<String> = (0..13).map(|at| format!("e{at:02}")).collect();
        let partition = Partition::new(&names, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11]);
        let tasks = |expert: &str| vec![format!("{expert} task"), "shared".to_owned()];
        Clusters::new(Method::Mbc, &partition, tasks, Map::from_iter([("k".to_owned(), Value::from(12))]))
    }

    #[test]
    fn what_is_written_is_read_with_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clusters.json");
        clusters().write(&path).unwrap();
        assert_eq!(Clusters::read(&path).unwrap(), clusters());
        let names: Vec<String> = Clusters::read(&path).unwrap().clusters().iter().map(|c| c.name.clone()).collect();
        assert_eq!((names[0].as_str(), names[11].as_str()), ("c0", "c11"));
        assert_eq!(clusters().clusters()[0].experts, ["e11", "e12"]);
        assert_eq!(clusters().clusters()[0].tasks, ["e11 task", "e12 task", "shared"]);
        assert_eq!(clusters().partition().k(), 12);
    }

    #[test]
    fn a_file_without_tasks_or_settings_is_enough() {
        let read: Clusters =
            serde_json::from_str(r#"{"method": "given", "clusters": {"x": ["a"], "y": ["b", "c"]}}"#).unwrap();
        assert_eq!(read.clusters()[1].experts, ["b", "c"]);
        assert_eq!(read.partition().labels(), [1, 0, 0]);
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (text, expected) in [
            (r#"{"method": "mbc", "clusters": {}}"#, "no clusters"),
            (r#"{"method": "mbc", "clusters": {"x": []}}"#, "`x` has no experts"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"], "y": ["a"]}}"#, "`a` is in cluster `x` and in `y`"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"], "x": ["b"]}}"#, "`x` is given twice"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"]}, "tasks": {"z": []}}"#, "`z`"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"]}, "cluster": 1}"#, "unknown field `cluster`"),
            (r#"{"method": "magic", "clusters": {"x": ["a"]}}"#, "unknown variant `magic`"),
        ] {
            let error = serde_json::from_str::<Clusters>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
