//! The file clusters.json: which experts, and so which tasks, belong together.
//!
//! `{"method": "mbc", "clusters": {"c0": ["EXPERT", ...], ...}, "tasks": {"c0": ["TASK", ...], ...}, "settings": {...}}`

use std::collections::BTreeMap;
use std::path::Path;

use lorakit_format::read_text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clusters::{Cluster, ClusterMethod, Clusters};
use crate::clusters_file::mttl_lists;
use crate::clusters_file::name_lists::NameLists;
use crate::clusters_file::pretty_json::write_pretty;
use crate::error::{ClusterError, Result};

impl Clusters {
    /// Reads clusters.json, in our form or in mttl's. Unknown keys, repeated keys and contradictions are errors.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid clusters file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let in_file =
            |source: ClusterError| ClusterError::ClustersFile { path: path.to_owned(), source: Box::new(source) };
        if let Some(clusters) = mttl_lists::parse(&text) {
            return clusters.map_err(in_file);
        }
        let json: ClustersJson = serde_json::from_str(&text).map_err(|source| ClusterError::Json {
            path: path.to_owned(),
            expected: r#"{"method": ..., "clusters": {NAME: [EXPERT, ...]}, "tasks": {NAME: [TASK, ...]}}"#,
            source,
        })?;
        json.try_into().map_err(in_file)
    }

    /// Writes clusters.json atomically, with the same bytes for the same clusters.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_pretty(path, &ClustersJson::from(self))
    }
}

/// The fields of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ClustersJson {
    method: ClusterMethod,
    clusters: NameLists,
    #[serde(default)]
    tasks: NameLists,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    settings: Map<String, Value>,
}

impl From<&Clusters> for ClustersJson {
    fn from(clusters: &Clusters) -> Self {
        let (mut experts, mut tasks) = (NameLists::default(), NameLists::default());
        for cluster in clusters.clusters() {
            experts.0.push((cluster.name.clone(), cluster.experts.clone()));
            tasks.0.push((cluster.name.clone(), cluster.tasks.clone()));
        }
        Self { method: clusters.method(), clusters: experts, tasks, settings: clusters.settings().clone() }
    }
}

impl TryFrom<ClustersJson> for Clusters {
    type Error = ClusterError;

    fn try_from(json: ClustersJson) -> Result<Self> {
        let mut tasks = BTreeMap::new();
        for (name, list) in json.tasks.0 {
            if tasks.contains_key(&name) {
                return Err(ClusterError::Inconsistent(format!("`tasks` names the cluster `{name}` twice")));
            }
            tasks.insert(name, list);
        }
        let cluster = |(name, experts): (String, Vec<String>)| {
            let tasks = tasks.remove(&name).unwrap_or_default();
            Cluster { name, experts, tasks }
        };
        let clusters = json.clusters.0.into_iter().map(cluster).collect();
        if let Some(name) = tasks.keys().next() {
            return Err(ClusterError::Inconsistent(format!(
                "`tasks` names the cluster `{name}`, which `clusters` does not"
            )));
        }
        Self::checked(json.method, clusters, json.settings)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::partition::Partition;
    use lorakit_format::error_chain;

    fn clusters() -> Clusters {
        let names: Vec<String> = (0..13).map(|at| format!("e{at:02}")).collect();
        let partition = Partition::new(&names, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11]);
        let tasks = |expert: &str| vec![format!("{expert} task"), "shared".to_owned()];
        Clusters::new(ClusterMethod::Mbc, &partition, tasks, Map::from_iter([("k".to_owned(), Value::from(12))]))
    }

    /// What the text of a clusters.json is read as.
    fn read(text: &str) -> Result<Clusters> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clusters.json");
        std::fs::write(&path, text).unwrap();
        Clusters::read(&path)
    }

    #[test]
    fn clusters_are_read_as_they_were_written() {
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
        let read = read(r#"{"method": "given", "clusters": {"x": ["a"], "y": ["b", "c"]}}"#).unwrap();
        assert_eq!(read.clusters()[1].experts, ["b", "c"]);
        assert_eq!(read.partition().labels(), [1, 0, 0]);
    }

    #[test]
    fn contradictions_are_errors_that_name_the_cluster() {
        for (text, expected) in [
            (r#"{"method": "mbc", "clusters": {}}"#, "no clusters"),
            (r#"{"method": "mbc", "clusters": {"x": []}}"#, "`x` has no experts"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"], "y": ["a"]}}"#, "`a` is in cluster `x` and in `y`"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"], "x": ["b"]}}"#, "`x` is given twice"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"]}, "tasks": {"z": []}}"#, "`z`"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"]}, "tasks": {"x": ["t"], "x": []}}"#, "cluster `x` twice"),
            (r#"{"method": "mbc", "clusters": {"x": ["a"]}, "cluster": 1}"#, "unknown field `cluster`"),
            (r#"{"method": "magic", "clusters": {"x": ["a"]}}"#, "unknown variant `magic`"),
        ] {
            let error = error_chain(&read(text).unwrap_err());
            assert!(error.contains(expected) && error.contains("clusters.json"), "{text}: {error}");
        }
    }
}
