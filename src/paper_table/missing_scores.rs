//! Why rows and columns of a table have no score: a router, a metric or a task that the results do not have.

use crate::paper_table::table_spec::{ColumnSpec, RowSpec};
use lorakit_eval::Results;
use lorakit_format::{did_you_mean, similar_names};
use std::collections::BTreeSet;

/// What the files of a row have, in any run.
#[derive(Default)]
pub struct FoundResults {
    /// All routers.
    routers: BTreeSet<String>,
    /// The tasks of the row's router; none where it is missing.
    tasks: Option<BTreeSet<String>>,
    /// The metrics of the row's router on any of them.
    metrics: BTreeSet<String>,
}

impl FoundResults {
    /// Adds what a file has for a row.
    pub fn add(&mut self, row: &RowSpec, results: &Results) {
        for (router, tasks) in results.routers() {
            self.routers.insert(router.to_owned());
            if router == row.router {
                self.tasks.get_or_insert_default().extend(tasks.keys().cloned());
                self.metrics.extend(tasks.values().flat_map(|result| result.metrics.keys().cloned()));
            }
        }
    }

    /// Whether a file has the row's router.
    pub fn has_router(&self) -> bool {
        self.tasks.is_some()
    }

    /// Why a row has no score in any of `columns`; `runs` are the folders that were searched.
    pub fn of_row(&self, row: &RowSpec, columns: &[ColumnSpec], runs: &str) -> String {
        let RowSpec { label, router, .. } = row;
        let Some(tasks) = &self.tasks else {
            return match self.routers.is_empty() {
                true => format!("row `{label}` has no results in {runs}"),
                false => {
                    let known = listed(&self.routers);
                    // The names of routers have settings, with commas between them.
                    let similar = similar_names(router, self.routers.iter().map(String::as_str));
                    let suggested =
                        similar.first().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default();
                    format!("row `{label}`: no results of router `{router}`{suggested} in {runs}; there are {known}")
                }
            };
        };
        match columns.iter().find(|column| !self.metrics.contains(&column.metric)) {
            Some(column) => format!("row `{label}`: {}", no_metric(&column.metric, &self.metrics)),
            None => format!("row `{label}`: no task of the columns in {runs}; there are {}", listed(tasks)),
        }
    }
}

/// Why no row has a score in a column, where a row has results at all; `found` is of all rows.
pub fn of_column(column: &ColumnSpec, found: &[&FoundResults]) -> Option<String> {
    let metrics: BTreeSet<String> = found.iter().flat_map(|found| found.metrics.iter().cloned()).collect();
    let tasks: BTreeSet<String> = found.iter().flat_map(|found| found.tasks.iter().flatten().cloned()).collect();
    if tasks.is_empty() {
        return None;
    }
    let ColumnSpec { name, metric, .. } = column;
    Some(match metrics.contains(metric) {
        false => format!("column `{name}`: {}", no_metric(metric, &metrics)),
        true => format!("column `{name}`: none of its tasks has `{metric}`; there are the tasks {}", listed(&tasks)),
    })
}

fn no_metric(metric: &str, known: &BTreeSet<String>) -> String {
    let known = listed(known);
    format!("no metric `{metric}`{}; there are {known}", did_you_mean(metric, &known))
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
