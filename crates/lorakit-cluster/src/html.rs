//! The report as one HTML page that needs nothing else: no scripts, no fonts, no network.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::charts::{curve_plot, silhouette_plot};
use crate::clusters::Method;
use crate::heat_map::{Band, heat_map};
use crate::report::{ClusterReport, Report, SpaceReport};
use crate::{Similarity, Space};

/// The style of the page, for pages that stand beside it.
pub const STYLE: &str = include_str!("report.css");

/// The page for a report, with the heat map of `similarity`, which is of the same experts.
pub fn page(report: &Report, similarity: &Similarity) -> String {
    let title = format!("{} experts in {} clusters", report.experts, report.clusters.len());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n<p>{}</p>\n</header>\n",
        lead(report)
    );
    page.push_str("<div class=\"columns\">\n");
    page.push_str("<div class=\"wide\">\n");
    section(&mut page, "Similarity", &similarity_map(report, similarity));
    section(&mut page, "Spaces", &spaces(report));
    page.push_str("</div>\n<div>\n");
    if !report.curve.is_empty() {
        section(&mut page, "How many clusters", &how_many(report));
    }
    section(
        &mut page,
        "Silhouettes",
        &format!("{}<p class=\"note\">{SILHOUETTE_NOTE}</p>\n", silhouette_plot(&report.clusters)),
    );
    page.push_str("</div>\n</div>\n");
    section(&mut page, "Clusters", &report.clusters.iter().map(cluster).collect::<String>());
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

const SILHOUETTE_NOTE: &str = "One bar per expert: how much closer it is to its own cluster than to the next. \
    An expert left of zero is closer to another cluster; one alone in its cluster has zero.";

/// Text as it stands in HTML, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn section(page: &mut String, title: &str, body: &str) {
    let _ = writeln!(page, "<section>\n<h2>{title}</h2>\n{body}</section>");
}

fn lead(report: &Report) -> String {
    let method = match report.method {
        Method::Mbc => "Clustered by the similarity of their parameters (MBC).",
        Method::Random => "Clustered at random, as a baseline.",
        Method::Embedding => "Clustered by given embeddings.",
        Method::Given => "Clusters as given.",
    };
    let sizes: Vec<String> = report.clusters.iter().map(|cluster| cluster.members.len().to_string()).collect();
    format!("{method} Sizes {}. Silhouettes and the map are those of the {}.", sizes.join(", "), in_words(report.space))
}

fn in_words(space: Space) -> &'static str {
    match space {
        Space::Parameters => "flattened A and B",
        Space::Change => "change since the common start",
        Space::Delta => "deltas s B A",
    }
}

/// The heat map alone, as SVG: `similarity` in the order of the report's clusters.
pub fn similarity_map(report: &Report, similarity: &Similarity) -> String {
    let places: BTreeMap<&str, usize> = similarity.names().iter().map(String::as_str).zip(0..).collect();
    let experts = report.clusters.iter().flat_map(|cluster| &cluster.members);
    let order: Vec<usize> = experts.filter_map(|member| places.get(member.expert.as_str()).copied()).collect();
    let bands: Vec<Band> =
        report.clusters.iter().map(|cluster| Band { name: &cluster.name, len: cluster.members.len() }).collect();
    heat_map(similarity, &order, &bands)
}

fn how_many(report: &Report) -> String {
    let used = report.clusters.len();
    let suggested = report.suggestion.as_ref();
    let mut body = curve_plot(&report.curve, used, suggested.map(|suggestion| suggestion.k));
    if let Some(suggestion) = suggested {
        let _ = writeln!(
            body,
            "<p class=\"note\">Suggested: <strong>k = {}</strong>; {}. Here k = {used}. \
             These silhouettes are those of the embedding that is clustered.</p>",
            suggestion.k,
            escape(&suggestion.reason)
        );
    }
    body
}

fn spaces(report: &Report) -> String {
    let mut body =
        "<table>\n<tr><th>space</th><th>what is compared</th><th>within</th><th>between</th><th>silhouette</th></tr>\n"
            .to_owned();
    for SpaceReport { space, within, between, silhouette } in &report.spaces {
        let number = |value: &Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        let _ = writeln!(
            body,
            "<tr><td>{space}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{silhouette:.3}</td></tr>",
            in_words(*space),
            number(within),
            number(between)
        );
    }
    for missing in &report.unavailable {
        let _ = writeln!(
            body,
            "<tr class=\"missing\"><td>{}</td><td colspan=\"4\">{}</td></tr>",
            missing.space,
            escape(&missing.reason)
        );
    }
    body.push_str("</table>\n<p class=\"note\">Mean cosine of two experts of one cluster, and of two clusters.</p>\n");
    body
}

fn cluster(cluster: &ClusterReport) -> String {
    let members: String = cluster
        .members
        .iter()
        .map(|member| {
            let class = if member.silhouette < 0.0 { " class=\"misfit\"" } else { "" };
            format!("<li{class} title=\"silhouette {:.3}\">{}</li>\n", member.silhouette, escape(&member.expert))
        })
        .collect();
    let tasks: Vec<String> = cluster.tasks.iter().map(|task| escape(task)).collect();
    let named_like_tasks = cluster.tasks.iter().all(|task| cluster.members.iter().any(|member| member.expert == *task));
    let tasks =
        if named_like_tasks { String::new() } else { format!("<p class=\"note\">Tasks: {}</p>\n", tasks.join(", ")) };
    format!(
        "<article>\n<h3>{} <small>{} experts, silhouette {:.3}</small></h3>\n<ul>\n{members}</ul>\n{tasks}</article>\n",
        escape(&cluster.name),
        cluster.members.len(),
        cluster.silhouette
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::planted::Planted;
    use crate::report::{Spaces, curve};
    use crate::{Clusters, Embedded, Experts, MbcOptions};

    #[test]
    fn names_are_escaped_and_the_page_stands_alone() {
        let mut adapters = Planted::default().adapters();
        adapters[0].0 = "<script>alert('1')</script>&\"".to_owned();
        let experts = Experts::in_memory(adapters).unwrap();
        let embedded = Embedded::of(&experts, &MbcOptions::default()).unwrap();
        let partition = embedded.partition(3).unwrap();
        let clusters =
            Clusters::new(Method::Mbc, &partition, |expert| vec![format!("<{expert}")], serde_json::Map::new());
        let spaces = Spaces::of(&experts).unwrap();
        let report = Report::new(&clusters, &spaces, Space::Delta, curve(&embedded, 8).unwrap()).unwrap();
        let page = page(&report, spaces.get(Space::Delta).unwrap());
        assert!(
            !page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;")
        );
        assert!(!page.contains("http") && page.contains("&lt;e01"));
    }
}
