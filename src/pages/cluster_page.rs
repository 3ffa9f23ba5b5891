//! The report of a clustering.

use super::heat_map::similarity_map;
use super::markup::render;
use super::page::Page;
use super::silhouette_charts::{curve_plot, silhouette_plot};
use anyhow::Result;
use lorakit_cluster::{
    ClusterMethod, ClusterReport, ClusteringReport, ComparisonSpace, Similarity, SpaceReport, SuggestedK,
    UnavailableSpace,
};
use minijinja::Value;
use serde::Serialize;

#[derive(Serialize)]
struct Body<'a> {
    similarity_map: Value,
    spaces: Vec<SpaceRow<'a>>,
    unavailable: &'a [UnavailableSpace],
    /// Absent where no other number of clusters was tried.
    curve_plot: Option<Value>,
    suggestion: Option<&'a SuggestedK>,
    k: usize,
    silhouette_plot: Value,
    clusters: Vec<ClusterCard<'a>>,
}

#[derive(Serialize)]
struct SpaceRow<'a> {
    compares: &'static str,
    #[serde(flatten)]
    report: &'a SpaceReport,
}

impl<'a> SpaceRow<'a> {
    fn of(report: &'a SpaceReport) -> Self {
        Self { compares: compared(report.space), report }
    }
}

#[derive(Serialize)]
struct ClusterCard<'a> {
    #[serde(flatten)]
    report: &'a ClusterReport,
    /// Empty where each task has the name of a member.
    tasks_shown: String,
}

/// The HTML document for a report, with the heat map of `similarity`, which is of the same experts.
pub fn html(report: &ClusteringReport, similarity: &Similarity) -> Result<String> {
    let suggested = report.suggestion.as_ref();
    let k = report.clusters.len();
    let curve_plot = match report.curve.is_empty() {
        true => None,
        false => Some(curve_plot(&report.curve, k, suggested.map(|suggestion| suggestion.k))?),
    };
    let body = Body {
        similarity_map: similarity_map(report, similarity)?,
        spaces: report.spaces.iter().map(SpaceRow::of).collect(),
        unavailable: &report.unavailable,
        curve_plot,
        suggestion: suggested,
        k,
        silhouette_plot: silhouette_plot(&report.clusters)?,
        clusters: report.clusters.iter().map(card).collect(),
    };
    let body = render(include_str!("cluster_page.html"), &body)?;
    let title = format!("{} experts in {k} clusters", report.experts);
    Page { title, lead: lead(report), style: Value::from(""), body }.html()
}

fn lead(report: &ClusteringReport) -> String {
    let method = match report.method {
        ClusterMethod::Mbc => "Clustered by the similarity of their parameters (MBC).",
        ClusterMethod::Random => "Clustered at random, as a baseline.",
        ClusterMethod::Embedding => "Clustered by embeddings of their tasks.",
        ClusterMethod::Given => "Clusters as given.",
    };
    let sizes: Vec<String> = report.clusters.iter().map(|cluster| cluster.members.len().to_string()).collect();
    let space = compared(report.space);
    format!("{method} Sizes: {}. Silhouettes and heat map compare the {space}.", sizes.join(", "))
}

fn compared(space: ComparisonSpace) -> &'static str {
    match space {
        ComparisonSpace::Parameters => "flattened A and B",
        ComparisonSpace::Change => "change since the common start",
        ComparisonSpace::Delta => "deltas s B A",
    }
}

fn card(report: &ClusterReport) -> ClusterCard<'_> {
    let is_member = |task: &String| report.members.iter().any(|member| member.expert == *task);
    let tasks_shown = if report.tasks.iter().all(is_member) { String::new() } else { report.tasks.join(", ") };
    ClusterCard { report, tasks_shown }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use lorakit_adapter::{Adapter, LowRank, Matrix};
    use lorakit_cluster::{Clusters, ExpertSet, MbcEmbedding, MbcOptions, SpaceSimilarities, silhouette_curve};
    use std::collections::BTreeMap;

    /// Rank 1 on one module, along one of two directions.
    fn adapter(at: u8) -> Adapter {
        let (along, across) = (f32::from(at % 2), f32::from(1 - at % 2));
        let noise = 0.01 * f32::from(at);
        let a = Matrix::new(1, 2, vec![along + noise, across]).unwrap();
        let b = Matrix::new(2, 1, vec![across, along + noise]).unwrap();
        Adapter::new(BTreeMap::from([("layers.0.q_proj".to_owned(), LowRank::new(a, b, 1.0).unwrap())]))
    }

    #[test]
    fn names_are_escaped_and_the_page_needs_no_other_file() {
        let names = ["<script>alert('1')</script>&\"", "e1", "e2", "e3", "e4", "e5"];
        let adapters = names.iter().zip(0..).map(|(name, at)| ((*name).to_owned(), adapter(at)));
        let experts = ExpertSet::in_memory(adapters).unwrap();
        let embedded = MbcEmbedding::of(&experts, &MbcOptions::default()).unwrap();
        let partition = embedded.partition(2).unwrap();
        let clusters =
            Clusters::new(ClusterMethod::Mbc, &partition, |expert| vec![format!("<{expert}")], serde_json::Map::new());
        let spaces = SpaceSimilarities::of(&experts).unwrap();
        let report =
            ClusteringReport::new(&clusters, &spaces, ComparisonSpace::Delta, silhouette_curve(&embedded, 4).unwrap())
                .unwrap();
        let html = html(&report, spaces.get(ComparisonSpace::Delta).unwrap()).unwrap();
        let escaped = "&lt;script&gt;alert(&#x27;1&#x27;)&lt;&#x2f;script&gt;&amp;&quot;";
        assert!(!html.contains("<script") && html.contains(escaped), "{html}");
        assert!(!html.contains("http") && html.contains("Tasks: &lt;e1"), "{html}");
        assert!(html.contains("<title>6 experts in 2 clusters</title>") && html.contains("Suggested"), "{html}");
    }
}
