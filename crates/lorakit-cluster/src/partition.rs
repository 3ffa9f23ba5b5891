//! A partition of experts into clusters, in the order of all reports and files.

use std::cmp::Reverse;

use crate::adjusted_rand::adjusted_rand;
use crate::error::{ClusterError, Result};

/// Experts sorted by name, with the cluster of each. Clusters are ordered by size, the largest first, then by the name of
/// their first member; none is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    names: Vec<String>,
    labels: Vec<usize>,
}

impl Partition {
    /// A partition by any labels. `names` must be sorted.
    pub(crate) fn new(names: &[String], labels: &[usize]) -> Self {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); labels.iter().max().map_or(0, |label| label + 1)];
        labels.iter().enumerate().for_each(|(expert, label)| members[*label].push(expert));
        members.retain(|members| !members.is_empty());
        members.sort_by_key(|members| (Reverse(members.len()), members[0]));
        let mut ordered = vec![0; labels.len()];
        for (label, members) in members.iter().enumerate() {
            members.iter().for_each(|expert| ordered[*expert] = label);
        }
        Self { names: names.to_vec(), labels: ordered }
    }

    /// The experts, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The cluster of each expert, in the order of the names.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// The number of clusters.
    pub fn k(&self) -> usize {
        self.labels.iter().max().map_or(0, |label| label + 1)
    }

    /// The members of each cluster, as indices into the names.
    pub fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.k()];
        self.labels.iter().enumerate().for_each(|(expert, label)| members[*label].push(expert));
        members
    }

    /// The adjusted Rand index of two partitions of the same experts: 1 if they are equal, about 0 if they agree by chance.
    ///
    /// # Errors
    /// If an expert is in only one of them.
    pub fn adjusted_rand(&self, other: &Self) -> Result<f64> {
        ensure_same_experts(&self.names, &other.names)?;
        adjusted_rand(&self.labels, &other.labels)
    }
}

/// Checks that two sorted lists have the same names.
///
/// # Errors
/// If an expert is in only one of them.
pub(crate) fn ensure_same_experts(left: &[String], right: &[String]) -> Result<()> {
    let missing = |from: &[String], in_: &[String]| from.iter().find(|name| in_.binary_search(name).is_err()).cloned();
    match missing(left, right).or_else(|| missing(right, left)) {
        Some(expert) => Err(ClusterError::DifferentNames(expert)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn clusters_are_ordered_by_size_then_first_member() {
        let partition = Partition::new(&names(&["a", "b", "c", "d", "e"]), &[7, 2, 2, 4, 4]);
        assert_eq!(partition.labels(), [2, 0, 0, 1, 1]);
        assert_eq!((partition.k(), partition.members()), (3, vec![vec![1, 2], vec![3, 4], vec![0]]));
    }

    #[test]
    fn partitions_of_different_experts_are_not_compared() {
        let left = Partition::new(&names(&["a", "b"]), &[0, 1]);
        let right = Partition::new(&names(&["a", "c"]), &[0, 1]);
        assert!(matches!(left.adjusted_rand(&right), Err(ClusterError::DifferentNames(name)) if name == "b"));
    }
}
