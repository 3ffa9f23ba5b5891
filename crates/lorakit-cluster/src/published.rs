//! The clusters that the authors of MBC published: `{"c3o10": ["TASK", ...], ...}`, with or without a description.
//!
//! The form is that of the task sets in microsoft/mttl. An expert there is named after its one task.

use std::path::Path;

use serde_json::{Map, Value};

use crate::clusters::{Cluster, Clusters, Method};
use crate::{Error, Result};

/// The key of a published file that is no cluster.
const DESCRIPTION: &str = "description";

/// Reads one published file of clusters; their names stay as published, and each expert is its task.
///
/// # Errors
/// If the file cannot be read, or is one of the published files that hold something else: similarities of pairs,
/// a list of tasks among its own clusters, train and test splits.
pub fn read_published(path: &Path) -> Result<Clusters> {
    let refuse = |message: String| Error::File { path: path.to_owned(), message };
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    parse(&text).map_err(|error| refuse(error.to_string()))
}

fn parse(text: &str) -> Result<Clusters> {
    let file: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        Error::Inconsistent(format!("{error}; expected an object of cluster names and lists of tasks"))
    })?;
    let mut settings = Map::new();
    let mut clusters = Vec::new();
    for (name, value) in file {
        match value {
            Value::String(_) if name == DESCRIPTION => drop(settings.insert(name, value)),
            value => clusters.push(cluster(name, value)?),
        }
    }
    Clusters::checked(Method::Given, clusters, settings)
}

fn cluster(name: String, value: Value) -> Result<Cluster> {
    let experts: Vec<String> = serde_json::from_value(value)
        .map_err(|error| Error::Inconsistent(format!("`{name}` is no cluster: {error}; expected a list of tasks")))?;
    let mut tasks = experts.clone();
    tasks.sort();
    Ok(Cluster { name, experts, tasks })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn clusters_keep_their_names_and_the_description_is_a_setting() {
        let clusters = parse(r#"{"description": "two", "c4o2": ["b", "a"], "c0o2": ["d"]}"#).unwrap();
        let names: Vec<&str> = clusters.clusters().iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["c4o2", "c0o2"]);
        assert_eq!(
            (clusters.clusters()[0].tasks.as_slice(), clusters.settings().len()),
            (&["a".to_owned(), "b".to_owned()][..], 1)
        );
    }

    #[test]
    fn files_of_other_things_are_refused() {
        let pairs = parse(r#"{"phi40": {"a, b": 0.9}}"#).unwrap_err().to_string();
        assert!(pairs.contains("`phi40` is no cluster"), "{pairs}");
        let overlap = parse(r#"{"all": ["a", "b"], "train": ["a"]}"#).unwrap_err().to_string();
        assert!(overlap.contains("`a` is in cluster `all` and in `train`"), "{overlap}");
    }
}
