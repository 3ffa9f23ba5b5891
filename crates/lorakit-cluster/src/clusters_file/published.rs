//! The clusters that the authors of MBC published, the task sets of microsoft/mttl: `{"c3o10": ["TASK", ...], ...}`, with or
//! without a description. Each expert is named after its one task.

use std::path::Path;

use lorakit_format::read_text;
use serde_json::{Map, Value};

use crate::clusters::{Cluster, ClusterMethod, Clusters};
use crate::clusters_file::name_lists::JsonEntries;
use crate::error::{ClusterError, Result};

/// The only key of a published file that is not a cluster.
const DESCRIPTION: &str = "description";

/// Reads a published file of clusters. Names are kept, and each expert is its own task.
///
/// # Errors
/// If the file cannot be read or contains something else, as some published files do: similarities of pairs, a list of all
/// tasks among the clusters, training and test splits.
pub fn read_published(path: &Path) -> Result<Clusters> {
    let text = read_text(path)?;
    parse(&text).map_err(|source| ClusterError::ClustersFile { path: path.to_owned(), source: Box::new(source) })
}

fn parse(text: &str) -> Result<Clusters> {
    let JsonEntries(file): JsonEntries<Value> = serde_json::from_str(text).map_err(|error| {
        ClusterError::Inconsistent(format!("{error}; expected an object of cluster names and lists of tasks"))
    })?;
    let mut settings = Map::new();
    let mut clusters = Vec::new();
    for (name, value) in file {
        match value {
            Value::String(_) if name == DESCRIPTION => {
                if settings.insert(name, value).is_some() {
                    return Err(ClusterError::Inconsistent(format!("`{DESCRIPTION}` is given twice")));
                }
            }
            value => clusters.push(cluster(name, value)?),
        }
    }
    Clusters::checked(ClusterMethod::Given, clusters, settings)
}

fn cluster(name: String, value: Value) -> Result<Cluster> {
    let experts: Vec<String> = serde_json::from_value(value).map_err(|error| {
        ClusterError::Inconsistent(format!("`{name}` is not a cluster: {error}; expected a list of tasks"))
    })?;
    let mut tasks = experts.clone();
    tasks.sort();
    Ok(Cluster { name, experts, tasks })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_are_kept_and_the_description_is_a_setting() {
        let clusters = parse(r#"{"description": "two", "c4o2": ["b", "a"], "c0o2": ["d"]}"#).unwrap();
        let names: Vec<&str> = clusters.clusters().iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["c4o2", "c0o2"]);
        assert_eq!(
            (clusters.clusters()[0].tasks.as_slice(), clusters.settings().len()),
            (&["a".to_owned(), "b".to_owned()][..], 1)
        );
    }

    #[test]
    fn files_of_something_else_are_refused() {
        let pairs = parse(r#"{"phi40": {"a, b": 0.9}}"#).unwrap_err().to_string();
        assert!(pairs.contains("`phi40` is not a cluster"), "{pairs}");
        let overlap = parse(r#"{"all": ["a", "b"], "train": ["a"]}"#).unwrap_err().to_string();
        assert!(overlap.contains("`a` is in cluster `all` and in `train`"), "{overlap}");
        let repeated = parse(r#"{"c0": ["a"], "c0": ["b"]}"#).unwrap_err().to_string();
        assert!(repeated.contains("the cluster `c0` is given twice"), "{repeated}");
    }
}
