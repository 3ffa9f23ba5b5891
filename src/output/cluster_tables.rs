//! Tables of clusters.

use crate::output::text_table::{number, table};
use lorakit_cluster::{Cluster, ClusterReport, ClusteringReport, Clusters, CurvePoint};

/// Rows of the table of the best numbers of clusters.
const BEST_LISTED: usize = 5;

/// The clusters with their tasks.
pub fn of_tasks(clusters: &Clusters) -> String {
    let line = |cluster: &Cluster| {
        let tasks = wrapped(cluster.tasks.iter().map(String::as_str));
        vec![cluster.name.clone(), cluster.tasks.len().to_string(), tasks]
    };
    table(["cluster", "size", "tasks"], clusters.clusters().iter().map(line))
}

/// All tables of a report.
pub fn summary(report: &ClusteringReport) -> String {
    let members = |cluster: &ClusterReport| wrapped(cluster.members.iter().map(|member| member.expert.as_str()));
    let clusters = report.clusters.iter().map(|cluster| {
        vec![
            cluster.name.clone(),
            cluster.members.len().to_string(),
            number(Some(cluster.silhouette), 3),
            members(cluster),
        ]
    });
    let spaces = report.spaces.iter().map(|space| {
        vec![
            space.space.to_string(),
            number(space.within, 3),
            number(space.between, 3),
            number(Some(space.silhouette), 3),
        ]
    });
    let mut text = table(["cluster", "size", "silhouette", "experts"], clusters);
    text.push_str(&format!("\nSilhouettes are of the space {}.", report.space));
    text.push_str("\n\nMean cosine similarity of two experts within a cluster, and in different clusters:\n");
    text.push_str(&table(["space", "within", "between", "silhouette"], spaces));
    for missing in &report.unavailable {
        text.push_str(&format!("\n{}: {}", missing.space, missing.reason));
    }
    if let Some(suggestion) = &report.suggestion {
        text.push_str(&format!(
            "\n\nMean silhouette of the clustered embedding, for the {BEST_LISTED} best numbers of clusters and the used one:\n"
        ));
        text.push_str(&numbers_of_clusters(&report.curve, report.clusters.len()));
        text.push_str(&format!("\nSuggested: k = {}; {}.", suggestion.k, suggestion.reason));
    }
    text
}

/// The best numbers of clusters, and the used one.
fn numbers_of_clusters(curve: &[CurvePoint], used: usize) -> String {
    let mut best: Vec<&CurvePoint> = curve.iter().collect();
    best.sort_by(|a, b| b.silhouette.total_cmp(&a.silhouette).then(a.k.cmp(&b.k)));
    let (listed, others) = best.split_at(best.len().min(BEST_LISTED));
    let mut listed: Vec<&CurvePoint> =
        listed.iter().chain(others.iter().filter(|point| point.k == used)).copied().collect();
    listed.sort_by_key(|point| point.k);
    let line = |point: &CurvePoint| {
        let here = if point.k == used { "used" } else { "" };
        vec![point.k.to_string(), number(Some(point.silhouette), 3), here.to_owned()]
    };
    table(["k", "silhouette", ""], listed.into_iter().map(line))
}

/// Names separated by commas, in lines of about 80 characters.
fn wrapped<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let mut lines = vec![String::new()];
    for name in names {
        let mut line = lines.pop().unwrap_or_default();
        if !line.is_empty() {
            line.push(',');
            let full = line.len() + name.len() >= 80;
            if full {
                lines.push(std::mem::take(&mut line));
            } else {
                line.push(' ');
            }
        }
        line.push_str(name);
        lines.push(line);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_and_the_used_numbers_of_clusters_are_listed() {
        let curve: Vec<CurvePoint> = (2..12).map(|k| CurvePoint { k, silhouette: 1.0 / k as f64 }).collect();
        let listed = numbers_of_clusters(&curve, 11);
        assert_eq!(listed.lines().filter(|line| line.contains("0.")).count(), BEST_LISTED + 1, "{listed}");
        assert!(listed.contains("0.500") && listed.contains("0.091"), "{listed}");
    }

    #[test]
    fn lines_break_between_names_only() {
        let long = "x".repeat(79);
        assert_eq!(wrapped(["a", "b", &long, "c"]), format!("a, b,\n{long},\nc"));
        assert_eq!(wrapped([]), "");
    }
}
