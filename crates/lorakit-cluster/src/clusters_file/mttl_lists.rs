//! Clusters as in mttl, the code of arXiv:2405.11157: one JSON object of lists, `{"cluster_0": ["EXPERT", ...], ...}`.
//!
//! Its experts are named after their tasks, so the lists are of either.

use std::path::Path;

use serde_json::Map;

use crate::clusters::{Cluster, ClusterMethod, Clusters};
use crate::clusters_file::name_lists::{JsonEntries, NameLists};
use crate::clusters_file::pretty_json::write_pretty;
use crate::error::Result;

impl Clusters {
    /// Writes the clusters as mttl's lists, atomically. How they were found is lost, and so are their tasks.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_mttl(&self, path: &Path) -> Result<()> {
        let lists = self.clusters().iter().map(|cluster| (cluster.name.clone(), cluster.experts.clone()));
        write_pretty(path, &JsonEntries(lists.collect::<Vec<(String, Vec<String>)>>()))
    }
}

/// The clusters of a text of this form; None if it is of another.
pub(crate) fn parse(text: &str) -> Option<Result<Clusters>> {
    let lists = serde_json::from_str::<NameLists>(text).ok()?.0;
    if lists.is_empty() {
        return None;
    }
    let cluster = |(name, experts)| Cluster { name, experts, tasks: Vec::new() };
    Some(Clusters::checked(ClusterMethod::Given, lists.into_iter().map(cluster).collect(), Map::new()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn lists_are_read_and_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("10_mbc.json");
        std::fs::write(&path, r#"{"cluster_10": ["b", "a"], "cluster_2": ["c"]}"#).unwrap();
        let clusters = Clusters::read(&path).unwrap();
        assert_eq!((clusters.method(), clusters.clusters()[0].name.as_str()), (ClusterMethod::Given, "cluster_10"));
        assert_eq!(clusters.clusters()[0].experts, ["b", "a"]);
        clusters.write_mttl(&path).unwrap();
        assert_eq!(Clusters::read(&path).unwrap(), clusters);
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\n  \"cluster_10\": [\n"));
    }

    #[test]
    fn contradictions_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clusters.json");
        for (text, part) in [
            (r#"{"x": ["a"], "y": ["a"]}"#, "`a` is in cluster `x` and in `y`"),
            (r#"{"x": []}"#, "no experts"),
            (r#"{"x": ["a"], "x": ["b"]}"#, "the cluster `x` is given twice"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Clusters::read(&path).unwrap_err();
            let error = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(error.contains(part) && error.contains("clusters.json"), "{error}");
        }
    }
}
