//! What a clustering is worth: sizes, similarity within and between clusters, silhouettes, and a number of clusters
//! that would fit better.

use serde::Serialize;

use crate::clusters::{Clusters, Method};
use crate::mbc::Embedded;
use crate::silhouette::{mean_silhouette, silhouettes};
use crate::{Error, Experts, Partition, Result, Similarity, Space};

/// Silhouettes below this say that clusters are hardly closer than chance; Kaufman and Rousseeuw (1990) call up to
/// 0.25 "no substantial structure", which is for low dimensions: in millions, all distances are near 1.
const FAINT: f64 = 0.05;

/// The similarities of the same experts in every space in which they can be compared.
#[derive(Clone, Debug)]
pub struct Spaces {
    available: Vec<(Space, Similarity)>,
    unavailable: Vec<Unavailable>,
}

/// A space in which these experts cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unavailable {
    /// The space.
    pub space: Space,
    /// Why not.
    pub reason: String,
}

impl Spaces {
    /// Compares the experts in all spaces; those that need equal ranks and modules, or the starting A, may drop out.
    ///
    /// # Errors
    /// If an expert cannot be opened or overflows.
    pub fn of(experts: &Experts) -> Result<Self> {
        let mut spaces = Self { available: Vec::new(), unavailable: Vec::new() };
        for space in Space::ALL {
            match Similarity::of(experts, space) {
                Ok(similarity) => spaces.available.push((space, similarity)),
                Err(error @ (Error::NotAligned { .. } | Error::NoStart)) => {
                    spaces.unavailable.push(Unavailable { space, reason: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(spaces)
    }

    /// The similarity in one space, where there is one; in [`Space::Delta`] there always is.
    pub fn get(&self, space: Space) -> Option<&Similarity> {
        self.available.iter().find(|(other, _)| *other == space).map(|(_, similarity)| similarity)
    }
}

/// A clustering, judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How the clusters were found.
    pub method: Method,
    /// The number of experts.
    pub experts: usize,
    /// The space of the silhouettes of clusters and members.
    pub space: Space,
    /// The clusters, as in the file.
    pub clusters: Vec<ClusterReport>,
    /// The spaces in which the experts can be compared.
    pub spaces: Vec<SpaceReport>,
    /// The others.
    pub unavailable: Vec<Unavailable>,
    /// The mean silhouette for other numbers of clusters; empty where none were tried.
    pub curve: Vec<CurvePoint>,
    /// The number of clusters that the curve speaks for.
    pub suggestion: Option<Suggestion>,
}

/// One cluster, judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterReport {
    /// Its name.
    pub name: String,
    /// The mean silhouette of its members.
    pub silhouette: f64,
    /// Its members, the best fitting first.
    pub members: Vec<Member>,
    /// Their tasks.
    pub tasks: Vec<String>,
}

/// One expert in its cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// The expert.
    pub expert: String,
    /// Its silhouette, in [-1, 1]; below 0 it is closer to another cluster.
    pub silhouette: f64,
}

/// A clustering seen in one space.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpaceReport {
    /// The space.
    pub space: Space,
    /// The mean cosine of two experts of one cluster; `None` where all clusters have one member.
    pub within: Option<f64>,
    /// The mean cosine of two experts of different clusters; `None` where there is one cluster.
    pub between: Option<f64>,
    /// The mean silhouette of all experts.
    pub silhouette: f64,
}

/// The worth of one number of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// The number of clusters.
    pub k: usize,
    /// The mean silhouette of all experts.
    pub silhouette: f64,
}

/// A number of clusters, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// The number of clusters.
    pub k: usize,
    /// The reason, a sentence.
    pub reason: String,
}

impl Report {
    /// Judges clusters by the similarities of their experts in `space`, that in which they were found, and by `curve`,
    /// which may be empty.
    ///
    /// # Errors
    /// If the experts cannot be compared in `space`, or the clusters and the similarities are not of the same experts.
    pub fn new(clusters: &Clusters, spaces: &Spaces, space: Space, curve: Vec<CurvePoint>) -> Result<Self> {
        let partition = clusters.partition();
        let similarity = spaces.get(space).ok_or_else(|| {
            let why = spaces.unavailable.iter().find(|unavailable| unavailable.space == space);
            let why = why.map_or_else(|| "it is not among those compared".to_owned(), |why| why.reason.clone());
            Error::Inconsistent(format!("clusters cannot be judged in the space `{space}`: {why}"))
        })?;
        ensure_same(similarity.names(), partition.names())?;
        let silhouettes = silhouettes(similarity, &partition);
        let of_cluster = |cluster: &crate::Cluster| {
            let silhouette =
                |expert: &String| partition.names().binary_search(expert).map_or(0.0, |at| silhouettes[at]);
            let member = |expert: &String| Member { expert: expert.clone(), silhouette: silhouette(expert) };
            let mut members: Vec<Member> = cluster.experts.iter().map(member).collect();
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
                .available
                .iter()
                .map(|(space, similarity)| SpaceReport::of(*space, similarity, &partition))
                .collect(),
            unavailable: spaces.unavailable.clone(),
            suggestion: suggestion(&curve),
            curve,
        })
    }
}

impl SpaceReport {
    fn of(space: Space, similarity: &Similarity, partition: &Partition) -> Self {
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

fn ensure_same(left: &[String], right: &[String]) -> Result<()> {
    let lacks =
        |left: &[String], right: &[String]| left.iter().find(|name| right.binary_search(name).is_err()).cloned();
    match lacks(left, right).or_else(|| lacks(right, left)) {
        Some(expert) => Err(Error::DifferentExperts(expert)),
        None => Ok(()),
    }
}

/// The mean silhouette of k-means for every k from 2 to `largest`, or to one below the number of experts, or to that
/// of distinct experts: a curve to choose k by.
///
/// # Errors
/// If k-means fails for another reason than experts that do not differ.
pub fn curve(embedded: &Embedded, largest: usize) -> Result<Vec<CurvePoint>> {
    let last = largest.min(embedded.similarity.names().len() - 1);
    let mut curve = Vec::new();
    for k in 2..=last {
        match embedded.partition(k) {
            Ok(partition) => {
                curve.push(CurvePoint { k, silhouette: mean_silhouette(&embedded.similarity, &partition) })
            }
            Err(Error::TooFewDistinct { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(curve)
}

/// The k of the largest mean silhouette, the smallest of equals, with how clear the choice is.
pub fn suggestion(curve: &[CurvePoint]) -> Option<Suggestion> {
    let better = |best: CurvePoint, next: CurvePoint| if next.silhouette > best.silhouette { next } else { best };
    let best = curve.iter().copied().reduce(better)?;
    let (first, last) = (curve.first()?.k, curve.last()?.k);
    let second = curve.iter().copied().filter(|point| point.k != best.k).reduce(better);
    let runner_up =
        second.map_or_else(String::new, |next| format!(", before {:.3} at k = {}", next.silhouette, next.k));
    let caution = if best.silhouette < FAINT {
        "; so low a value says that no number of clusters separates these experts well"
    } else {
        ""
    };
    let reason = format!(
        "its mean silhouette, {:.3}, is the largest of k = {first} to {last}{runner_up}{caution}",
        best.silhouette
    );
    Some(Suggestion { k: best.k, reason })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::mbc::MbcOptions;
    use crate::planted::{Planted, adapter};
    use serde_json::Map;

    fn report(planted: &Planted) -> Report {
        let experts = planted.experts();
        let embedded = Embedded::of(&experts, &MbcOptions::default()).unwrap();
        let partition = embedded.partition(planted.families).unwrap();
        let clusters = Clusters::new(Method::Mbc, &partition, |expert| vec![expert.to_owned()], Map::new());
        let curve = curve(&embedded, 10).unwrap();
        Report::new(&clusters, &Spaces::of(&experts).unwrap(), Space::Delta, curve).unwrap()
    }

    #[test]
    fn planted_families_are_suggested_and_similarity_within_exceeds_that_between() {
        let report = report(&Planted { step: 2.0, ..Planted::default() });
        assert_eq!(report.suggestion.as_ref().unwrap().k, 3);
        assert!(report.suggestion.as_ref().unwrap().reason.contains("k = 2 to 10"), "{:?}", report.suggestion);
        assert_eq!(report.spaces.iter().map(|space| space.space).collect::<Vec<_>>(), Space::ALL);
        for space in &report.spaces {
            assert!(space.within.unwrap() > space.between.unwrap() + 0.2, "{space:?}");
        }
        assert_eq!(report.clusters.iter().map(|cluster| cluster.members.len()).collect::<Vec<_>>(), [4, 4, 4]);
        assert!(report.clusters.iter().all(|cluster| cluster.silhouette > 0.2));
    }

    #[test]
    fn spaces_that_do_not_exist_are_named_with_their_reason() {
        let adapters =
            [2, 3, 2].iter().enumerate().map(|(at, rank)| (format!("e{at}"), adapter(at as u64, *rank, 1.0, true)));
        let spaces = Spaces::of(&Experts::in_memory(adapters).unwrap()).unwrap();
        assert!(spaces.get(Space::Delta).is_some() && spaces.get(Space::Parameters).is_none());
        assert!(spaces.unavailable.iter().all(|space| space.reason.contains("--space delta")), "{spaces:?}");
    }

    #[test]
    fn silhouettes_are_those_of_the_space_that_is_asked_for() {
        let experts = Planted { step: 2.0, ..Planted::default() }.experts();
        let partition = Embedded::of(&experts, &MbcOptions::default()).unwrap().partition(3).unwrap();
        let clusters = Clusters::new(Method::Mbc, &partition, |_| Vec::new(), Map::new());
        let spaces = Spaces::of(&experts).unwrap();
        let means = Space::ALL.map(|space| {
            let report = Report::new(&clusters, &spaces, space, Vec::new()).unwrap();
            let members = report.clusters.iter().flat_map(|cluster| &cluster.members);
            let mean = members.map(|member| member.silhouette).sum::<f64>() / report.experts as f64;
            let own = report.spaces.iter().find(|own| own.space == space).unwrap().silhouette;
            assert!(report.space == space && (mean - own).abs() < 1e-12, "{space}: {mean}, {own}");
            mean
        });
        assert!(means[0] != means[2], "{means:?}");
    }

    #[test]
    fn a_flat_curve_is_called_one() {
        let curve = [CurvePoint { k: 2, silhouette: 0.01 }, CurvePoint { k: 3, silhouette: 0.01 }];
        let suggestion = suggestion(&curve).unwrap();
        assert_eq!(suggestion.k, 2);
        assert!(suggestion.reason.contains("no number of clusters separates"));
    }
}
