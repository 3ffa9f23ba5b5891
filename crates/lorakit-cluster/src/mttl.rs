//! Clusters as mttl keeps them, the code of Towards Modular LLMs: one JSON object of lists,
//! `{"cluster_0": ["EXPERT", ...], ...}`.
//!
//! Its experts are named after their tasks, so the lists serve as either.

use std::path::Path;

use lorakit_format::atomic::write_file;
use serde_json::Map;

use crate::clusters::Table;
use crate::{Cluster, Clusters, Error, Method, Result};

impl Clusters {
    /// The clusters of a text of that form; None where it is none.
    pub(crate) fn of_mttl(text: &str) -> Option<Result<Self>> {
        let Table(lists) = serde_json::from_str(text).ok().filter(|Table(lists)| !lists.is_empty())?;
        let cluster = |(name, experts)| Cluster { name, experts, tasks: Vec::new() };
        Some(Self::checked(Method::Given, lists.into_iter().map(cluster).collect(), Map::new()))
    }

    /// Writes the clusters in that form: whole or not at all. How they were found, and which tasks are theirs where
    /// experts are not named so, is lost.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_mttl(&self, path: &Path) -> Result<()> {
        let refuse = |message: String| Error::File { path: path.to_owned(), message };
        let lists = self.clusters().iter().map(|cluster| (cluster.name.clone(), cluster.experts.clone())).collect();
        let mut text = serde_json::to_string_pretty(&Table(lists)).map_err(|error| refuse(error.to_string()))?;
        text.push('\n');
        Ok(write_file(path, text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn clusters_of_mttl_are_read_and_written_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("10_mbc.json");
        std::fs::write(&path, r#"{"cluster_10": ["b", "a"], "cluster_2": ["c"]}"#).unwrap();
        let clusters = Clusters::read(&path).unwrap();
        assert_eq!((clusters.method(), clusters.clusters()[0].name.as_str()), (Method::Given, "cluster_10"));
        assert_eq!(clusters.clusters()[0].experts, ["b", "a"]);
        clusters.write_mttl(&path).unwrap();
        assert_eq!(Clusters::read(&path).unwrap(), clusters);
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\n  \"cluster_10\": [\n"));
    }

    #[test]
    fn contradictions_are_refused_as_in_our_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clusters.json");
        for (text, part) in
            [(r#"{"x": ["a"], "y": ["a"]}"#, "`a` is in cluster `x` and in `y`"), (r#"{"x": []}"#, "no experts")]
        {
            std::fs::write(&path, text).unwrap();
            let error = Clusters::read(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("clusters.json"), "{error}");
        }
    }
}
