//! Experts divided into clusters, in the one order that all reports and files use.

use std::cmp::Reverse;

use crate::adjusted_rand::adjusted_rand;
use crate::{Error, Result};

/// Experts, sorted by name, with the cluster of each. Clusters are numbered by size, the largest first, and among
/// equals by the name of their first member; none is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    names: Vec<String>,
    labels: Vec<usize>,
}

impl Partition {
    /// Renumbers arbitrary labels of `names`, which are sorted.
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

    /// The members of each cluster, as positions among the names.
    pub fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.k()];
        self.labels.iter().enumerate().for_each(|(expert, label)| members[*label].push(expert));
        members
    }

    /// How far two partitions of the same experts agree beyond chance: 1 where they are equal.
    ///
    /// # Errors
    /// If an expert is in one of them alone.
    pub fn adjusted_rand(&self, other: &Self) -> Result<f64> {
        let lacks = |left: &Self, right: &Self| {
            left.names.iter().find(|name| right.names.binary_search(name).is_err()).cloned()
        };
        match lacks(self, other).or_else(|| lacks(other, self)) {
            Some(expert) => Err(Error::DifferentExperts(expert)),
            None => adjusted_rand(&self.labels, &other.labels),
        }
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
    fn clusters_are_ordered_by_size_then_first_member_and_empty_labels_vanish() {
        let partition = Partition::new(&names(&["a", "b", "c", "d", "e"]), &[7, 2, 2, 4, 4]);
        assert_eq!(partition.labels(), [2, 0, 0, 1, 1]);
        assert_eq!((partition.k(), partition.members()), (3, vec![vec![1, 2], vec![3, 4], vec![0]]));
    }

    #[test]
    fn partitions_of_different_experts_are_not_compared() {
        let left = Partition::new(&names(&["a", "b"]), &[0, 1]);
        let right = Partition::new(&names(&["a", "c"]), &[0, 1]);
        assert!(matches!(left.adjusted_rand(&right), Err(Error::DifferentExperts(name)) if name == "b"));
    }
}
