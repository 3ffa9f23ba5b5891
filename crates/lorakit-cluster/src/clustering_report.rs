//! A report on a clustering: sizes, similarity within and between clusters, silhouettes, and a better number of clusters.

use serde::Serialize;

use crate::cluster_count::{CurvePoint, SuggestedK, suggest_k};
use crate::clusters::{Cluster, ClusterMethod, Clusters};
use crate::comparison_space::ComparisonSpace;
use crate::error::{ClusterError, Result};
use crate::partition::{Partition, ensure_same_experts};
use crate::silhouette::{mean_silhouette, silhouettes};
use crate::similarity::Similarity;
use crate::space_similarities::{SpaceSimilarities, UnavailableSpace};

/// A report on a clustering.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusteringReport {
    /// How the clusters were found.
    pub method: ClusterMethod,
    /// The number of experts.
    pub experts: usize,
    /// The space of the silhouettes.
    pub space: ComparisonSpace,
    /// The clusters, as in the file.
    pub clusters: Vec<ClusterReport>,
    /// The clustering in every space in which the experts can be compared.
    pub spaces: Vec<SpaceReport>,
    /// The other spaces.
    pub unavailable: Vec<UnavailableSpace>,
    /// The mean silhouette for other numbers of clusters; empty if none were tried.
    pub curve: Vec<CurvePoint>,
    /// The number of clusters that the curve suggests.
    pub suggestion: Option<SuggestedK>,
}

/// One cluster in a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterReport {
    /// Its name.
    pub name: String,
    /// The mean silhouette of its members.
    pub silhouette: f64,
    /// Its members, the largest silhouette first.
    pub members: Vec<ClusterMember>,
    /// Their tasks.
    pub tasks: Vec<String>,
}

/// One expert in its cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterMember {
    /// The expert.
    pub expert: String,
    /// Its silhouette, in [-1, 1]; below 0 it is closer to another cluster.
    pub silhouette: f64,
}

/// A clustering in one space.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpaceReport {
    /// The space.
    pub space: ComparisonSpace,
    /// The mean cosine of two experts of one cluster; None if every cluster has one member.
    pub within: Option<f64>,
    /// The mean cosine of two experts of different clusters; None if there is one cluster.
    pub between: Option<f64>,
    /// The mean silhouette of all experts.
    pub silhouette: f64,
}

impl ClusteringReport {
    /// The report on clusters. `space` is the one for the silhouettes, usually that of the clustering; `curve` may be empty.
    ///
    /// # Errors
    /// If the experts cannot be compared in `space`, or clusters and similarities are of different experts.
    pub fn new(
        clusters: &Clusters,
        spaces: &SpaceSimilarities,
        space: ComparisonSpace,
        curve: Vec<CurvePoint>,
    ) -> Result<Self> {
        let partition = clusters.partition();
        let similarity = spaces.get(space).ok_or_else(|| {
            let why = spaces.unavailable().iter().find(|unavailable| unavailable.space == space);
            let why = why.map_or_else(|| "it is not among those compared".to_owned(), |why| why.reason.clone());
            ClusterError::Inconsistent(format!("the clusters cannot be compared in the space `{space}`: {why}"))
        })?;
        ensure_same_experts(similarity.names(), partition.names())?;
        let silhouettes = silhouettes(similarity, &partition);
        let of_cluster = |cluster: &Cluster| {
            let silhouette =
                |expert: &String| partition.names().binary_search(expert).map_or(0.0, |at| silhouettes[at]);
            let member = |expert: &String| ClusterMember { expert: expert.clone(), silhouette: silhouette(expert) };
            let mut members: Vec<ClusterMember> = cluster.experts.iter().map(member).collect();
            members.sort_by(|x, y| y.silhouette.total_cmp(&x.silhouette).then_with(|| x.expert.cmp(&y.expert)));
            let silhouette = members.iter().map(|member| member.silhouette).sum::<f64>() / members.len() as f64;
            ClusterReport { name: cluster.name.clone(), silhouette, members, tasks: cluster.tasks.clone() }
        };
        Ok(Self {
            method: clusters.method(),
            experts: partition.names().len(),
            space,
            clusters: clusters.clusters().iter().map(of_cluster).collect(),
            spaces: spaces
                .available()
                .iter()
                .map(|(space, similarity)| SpaceReport::of(*space, similarity, &partition))
                .collect(),
            unavailable: spaces.unavailable().to_vec(),
            suggestion: suggest_k(&curve),
            curve,
        })
    }
}

impl SpaceReport {
    fn of(space: ComparisonSpace, similarity: &Similarity, partition: &Partition) -> Self {
        let labels = partition.labels();
        let mean = |same: bool| {
            let pairs = (0..labels.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            let chosen = pairs.filter(|&(i, j)| (labels[i] == labels[j]) == same);
            let (sum, count) =
                chosen.fold((0.0, 0usize), |(sum, count), (i, j)| (sum + similarity.at(i, j), count + 1));
            (count > 0).then(|| sum / count as f64)
        };
        Self { space, within: mean(true), between: mean(false), silhouette: mean_silhouette(similarity, partition) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::cluster_count::silhouette_curve;
    use crate::mbc::{MbcEmbedding, MbcOptions};
    use crate::synthetic::Synthetic;
    use serde_json::Map;

    fn report(synthetic: &Synthetic) -> ClusteringReport {
        let experts = synthetic.experts();
        let embedded = MbcEmbedding::of(&experts, &MbcOptions::default()).unwrap();
        let partition = embedded.partition(synthetic.families).unwrap();
        let clusters = Clusters::new(ClusterMethod::Mbc, &partition, |expert| vec![expert.to_owned()], Map::new());
        let curve = silhouette_curve(&embedded, 10).unwrap();
        ClusteringReport::new(&clusters, &SpaceSimilarities::of(&experts).unwrap(), ComparisonSpace::Delta, curve)
            .unwrap()
    }

    #[test]
    fn families_are_suggested_and_similar_within() {
        let report = report(&Synthetic { step: 2.0, ..Synthetic::default() });
        assert_eq!(report.suggestion.as_ref().unwrap().k, 3);
        assert!(report.suggestion.as_ref().unwrap().reason.contains("k = 2 to 10"), "{:?}", report.suggestion);
        assert_eq!(report.spaces.iter().map(|space| space.space).collect::<Vec<_>>(), ComparisonSpace::ALL);
        for space in &report.spaces {
            assert!(space.within.unwrap() > space.between.unwrap() + 0.2, "{space:?}");
        }
        assert_eq!(report.clusters.iter().map(|cluster| cluster.members.len()).collect::<Vec<_>>(), [4, 4, 4]);
        assert!(report.clusters.iter().all(|cluster| cluster.silhouette > 0.2));
    }

    #[test]
    fn silhouettes_are_those_of_the_given_space() {
        let experts = Synthetic { step: 2.0, ..Synthetic::default() }.experts();
        let partition = MbcEmbedding::of(&experts, &MbcOptions::default()).unwrap().partition(3).unwrap();
        let clusters = Clusters::new(ClusterMethod::Mbc, &partition, |_| Vec::new(), Map::new());
        let spaces = SpaceSimilarities::of(&experts).unwrap();
        let means = ComparisonSpace::ALL.map(|space| {
            let report = ClusteringReport::new(&clusters, &spaces, space, Vec::new()).unwrap();
            let members = report.clusters.iter().flat_map(|cluster| &cluster.members);
            let mean = members.map(|member| member.silhouette).sum::<f64>() / report.experts as f64;
            let own = report.spaces.iter().find(|own| own.space == space).unwrap().silhouette;
            assert!(report.space == space && (mean - own).abs() < 1e-12, "{space}: {mean}, {own}");
            mean
        });
        assert!(means[0] != means[2], "{means:?}");
    }
}
