//! Named clusters of experts, with their tasks and how they were found.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ClusterError, Result};
use crate::partition::Partition;

/// How clusters were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterMethod {
    /// By the similarity of the experts' parameters: [`mbc`](crate::mbc::mbc).
    Mbc,
    /// At random: [`random_clusters`](crate::random_clusters::random_clusters).
    Random,
    /// By embeddings of the experts' tasks: [`embedding_clusters`](crate::embedding_clusters::embedding_clusters).
    Embedding,
    /// By hand or by another program.
    Given,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Its name, which the expert trained on it gets.
    pub name: String,
    /// Its members, at least one.
    pub experts: Vec<String>,
    /// The tasks of its members, sorted, without duplicates; empty if the file does not give them.
    pub tasks: Vec<String>,
}

/// The clusters of a library: every expert is in at most one, and none is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    method: ClusterMethod,
    clusters: Vec<Cluster>,
    settings: Map<String, Value>,
}

impl Clusters {
    /// Names the clusters of a partition `c0`, `c1`, ..., the largest first.
    ///
    /// `tasks` gives the tasks that an expert was trained on; `settings` records the method's settings.
    pub fn new(
        method: ClusterMethod,
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

    /// Clusters from elsewhere, which are checked.
    ///
    /// # Errors
    /// If there is no cluster, a cluster is empty, or a name occurs twice.
    pub fn checked(method: ClusterMethod, clusters: Vec<Cluster>, settings: Map<String, Value>) -> Result<Self> {
        let mut names = BTreeSet::new();
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        let refuse = |message: String| Err(ClusterError::Inconsistent(message));
        if clusters.is_empty() {
            return refuse("there are no clusters; expected at least one".to_owned());
        }
        for Cluster { name, experts, .. } in &clusters {
            if name.is_empty() {
                return refuse("the name of a cluster is empty; expected a name for each".to_owned());
            }
            if !names.insert(name) {
                return refuse(format!("the cluster `{name}` is given twice; expected one name per cluster"));
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

    /// How the clusters were found.
    pub fn method(&self) -> ClusterMethod {
        self.method
    }

    /// The clusters, in the order of the file.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// The method's settings.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// The experts with their clusters, to compare with another partition.
    pub fn partition(&self) -> Partition {
        let labeled = self.clusters.iter().enumerate();
        let mut labeled: Vec<(String, usize)> = labeled
            .flat_map(|(label, cluster)| cluster.experts.iter().map(move |expert| (expert.clone(), label)))
            .collect();
        labeled.sort();
        let (names, labels): (Vec<String>, Vec<usize>) = labeled.into_iter().unzip();
        Partition::new(&names, &labels)
    }
}
