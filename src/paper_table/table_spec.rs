//! What a table shows: the TOML files of `configs/tables`.

use crate::paper_table::task_families::FamilyPatterns;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A table: its columns, its rows, and the claims that it can decide.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// The heading.
    pub title: String,
    /// Where the paper's numbers are from, and what else a reader must know.
    #[serde(default)]
    pub note: String,
    /// The bases of the paper's own numbers, such as `Phi-2`: a column each.
    #[serde(default)]
    pub papers: Vec<String>,
    /// Tasks that are alike, a pattern of names for each family: claims are judged by families. None: each task is its own.
    pub families: Option<FamilyPatterns>,
    /// What is scored.
    #[serde(rename = "column")]
    pub columns: Vec<ColumnSpec>,
    /// The name of a last column with the mean of all columns.
    pub mean: Option<String>,
    /// What the numbers `x` of rows count, the title of the curves' axis.
    #[serde(default)]
    pub x_axis: String,
    /// What is compared.
    #[serde(rename = "row")]
    pub rows: Vec<RowSpec>,
    /// What the papers, or we, say about the rows.
    #[serde(rename = "claim", default)]
    pub claims: Vec<ClaimSpec>,
    /// The rows that decide whether these tasks can test a claim at all.
    pub testable: Option<TestableSpec>,
}

/// A column: the mean of one metric over tasks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSpec {
    /// Its heading.
    pub name: String,
    /// The metric's name in results.json.
    pub metric: String,
    /// Its tasks; none: all that a row was scored on.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// What values are multiplied by, 100 for percent.
    #[serde(default = "one")]
    pub scale: f64,
    /// Decimals that are shown.
    #[serde(default = "digits")]
    pub digits: usize,
}

impl ColumnSpec {
    /// Whether a lower value is better: that of a loss.
    pub fn lower_is_better(&self) -> bool {
        self.metric == "loss"
    }
}

/// A row: one router over one library.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSpec {
    /// Its name.
    pub label: String,
    /// What the router may look at: weights only, prompts, prompts with answers, or training by gradient.
    #[serde(default)]
    pub sees: String,
    /// Its results.json, or the folder of it, within a run.
    pub results: PathBuf,
    /// The key of the results within the file, for the documents that `adapt --json` prints.
    pub at: Option<String>,
    /// The router as it was typed.
    pub router: String,
    /// What a cell shows of several runs.
    #[serde(default)]
    pub aggregation: RunAggregation,
    /// Where the row stands in the plot of curves; without it, in none.
    pub x: Option<f64>,
    /// The curve that the row belongs to.
    #[serde(default)]
    pub series: String,
    /// The paper's own number by base: of the mean if there is one, else of the first column.
    #[serde(default)]
    pub paper: BTreeMap<String, f64>,
}

/// What a cell shows of several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunAggregation {
    /// Their mean.
    #[default]
    Mean,
    /// For each task the best of them, which is chosen on the rows that are scored. No claim can rest on it.
    Best,
}

/// A claim: one row is better than another.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimSpec {
    /// The claim as a sentence.
    pub text: String,
    /// The label of the better row.
    pub better: String,
    /// The label of the other.
    pub worse: String,
    /// The column that decides; none: the mean if there is one, else the first.
    pub column: Option<String>,
    /// The rows that decide whether this claim can be tested; none: those of the table.
    pub testable: Option<TestableSpec>,
}

/// The rows of [`lorakit_eval::Verdict::NotTestable`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestableSpec {
    /// The tasks' own experts.
    pub own: String,
    /// What they must beat: the base, and `chance` where it is scored.
    pub beats: Vec<String>,
}

fn one() -> f64 {
    1.0
}

fn digits() -> usize {
    1
}

impl TableSpec {
    /// Reads a TOML.
    ///
    /// # Errors
    /// If it is not a table, names a row, column or paper that it does not have, or claims that a row is better than itself.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}: not a table", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text)?;
        ensure!(!spec.columns.is_empty() && !spec.rows.is_empty(), "expected at least one [[column]] and one [[row]]");
        let mut labels = BTreeSet::new();
        for row in &spec.rows {
            ensure!(labels.insert(row.label.as_str()), "two rows have the label `{}`", row.label);
            ensure!(row.x.is_none_or(f64::is_finite), "row `{}`: `x` is not finite", row.label);
            for paper in row.paper.keys() {
                ensure!(spec.papers.contains(paper), "row `{}`: `{paper}` is not among papers", row.label);
            }
        }
        ensure_columns(&spec.columns, spec.mean.as_deref())?;
        let columns: Vec<&str> =
            spec.columns.iter().map(|column| column.name.as_str()).chain(spec.mean.as_deref()).collect();
        let testable = spec.testable.iter().chain(spec.claims.iter().filter_map(|claim| claim.testable.as_ref()));
        let testable = testable.flat_map(|testable| std::iter::once(&testable.own).chain(&testable.beats));
        let named = spec.claims.iter().flat_map(|claim| [&claim.better, &claim.worse]).chain(testable);
        for label in named {
            let known = || labels.iter().copied().collect::<Vec<_>>().join(", ");
            ensure!(labels.contains(label.as_str()), "there is no row `{label}`; the rows are {}", known());
            let is_chosen = |row: &&RowSpec| row.label == *label && row.aggregation == RunAggregation::Best;
            ensure!(
                !spec.rows.iter().any(|row| is_chosen(&row)),
                "row `{label}` is the best of several runs, chosen on the rows that are scored: no claim can rest on it"
            );
        }
        for column in spec.claims.iter().filter_map(|claim| claim.column.as_deref()) {
            ensure!(columns.contains(&column), "there is no column `{column}`; the columns are {}", columns.join(", "));
        }
        for ClaimSpec { text, better, worse, .. } in &spec.claims {
            ensure!(better != worse, "claim `{text}`: row `{better}` cannot be better than itself");
        }
        Ok(spec)
    }
}

/// The most decimals of a value: an `f64` has no more to show.
const MAX_DIGITS: usize = 16;

/// Refuses columns that could not be told apart, or whose values could not be shown or compared.
fn ensure_columns(columns: &[ColumnSpec], mean: Option<&str>) -> Result<()> {
    let mut names = BTreeSet::new();
    for ColumnSpec { name, scale, digits, .. } in columns {
        ensure!(names.insert(name), "two columns have the name `{name}`");
        ensure!(mean != Some(name), "column `{name}` has the name of `mean`");
        ensure!(*digits <= MAX_DIGITS, "column `{name}`: `digits` is {digits}; expected at most {MAX_DIGITS}");
        ensure!(
            scale.is_finite() && *scale > 0.0,
            "column `{name}`: `scale` is {scale}; expected a finite number above 0"
        );
    }
    let (losses, others): (Vec<&ColumnSpec>, Vec<&ColumnSpec>) =
        columns.iter().partition(|column| column.lower_is_better());
    if let (Some(mean), Some(loss), Some(other)) = (mean, losses.first(), others.first()) {
        bail!(
            "`mean = \"{mean}\"`: there is no mean of `{}`, where lower is better, and `{}`, where higher is",
            loss.name,
            other.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TABLE: &str = "title = 't'\n[[column]]\nname = 'loss'\nmetric = 'loss'\n\
        [[row]]\nlabel = 'base'\nresults = 'a'\nrouter = 'base'\n";

    #[test]
    fn invalid_names_are_refused() {
        assert!(TableSpec::parse(TABLE).is_ok());
        let claim = |claim: &str| format!("{TABLE}[[claim]]\ntext = 'x'\n{claim}");
        for (text, expected) in [
            (claim("better = 'base'\nworse = 'bse'\n"), "no row `bse`"),
            (claim("better = 'base'\nworse = 'base'\ncolumn = 'acc'\n"), "no column `acc`"),
            (claim("better = 'base'\nworse = 'base'\n"), "claim `x`: row `base` cannot be better than itself"),
            (format!("{TABLE}paper = {{ Phi = 1.0 }}\n"), "`Phi` is not among papers"),
            (format!("{TABLE}[[row]]\nlabel = 'base'\nresults = 'b'\nrouter = 'base'\n"), "two rows"),
            (format!("{TABLE}x = inf\n"), "`x` is not finite"),
            (format!("families = ['a', '(b']\n{TABLE}"), "`(b` is not a regular expression"),
            (format!("{TABLE}[testable]\nown = 'x'\nbeats = []\n"), "no row `x`"),
            (claim("better = 'base'\nworse = 'base'\ntestable = { own = 'y', beats = [] }\n"), "no row `y`"),
            (
                format!(
                    "{TABLE}[[row]]\nlabel = 'best'\nresults = 'a'\nrouter = 'base'\naggregation = 'best'\n[[claim]]\n\
                     text = 'x'\nbetter = 'best'\nworse = 'base'\n"
                ),
                "row `best` is the best of several runs",
            ),
        ] {
            let message = format!("{:#}", TableSpec::parse(&text).unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn columns_that_cannot_be_shown_or_compared_are_refused() {
        let table = |top: &str, more: &str| {
            let (title, rest) = TABLE.split_once('\n').unwrap();
            format!("{title}\n{top}\n[[column]]\nname = 'acc'\nmetric = 'acc'\n{more}\n{rest}")
        };
        assert!(TableSpec::parse(&table("", "digits = 16\nscale = 0.5")).is_ok());
        for (top, more, expected) in [
            ("", "digits = 100000", "column `acc`: `digits` is 100000; expected at most 16"),
            ("", "scale = -100", "column `acc`: `scale` is -100; expected a finite number above 0"),
            ("", "scale = 0", "`scale` is 0"),
            ("", "scale = nan", "`scale` is NaN"),
            ("", "scale = inf", "`scale` is inf"),
            ("", "[[column]]\nname = 'acc'\nmetric = 'loss'", "two columns have the name `acc`"),
            ("mean = 'acc'", "", "column `acc` has the name of `mean`"),
            ("mean = 'all'", "", "there is no mean of `loss`, where lower is better, and `acc`, where higher is"),
        ] {
            let message = format!("{:#}", TableSpec::parse(&table(top, more)).unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
    }

    /// Every table that is shipped can be read.
    #[test]
    fn the_tables_of_the_checkout_are_tables() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tables");
        let mut found = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                TableSpec::read(&path).unwrap();
                found += 1;
            }
        }
        assert!(found > 0);
    }

    /// One list of families in the tables of small bases, and each task of their sets in one of them.
    #[test]
    fn the_families_of_small_bases_are_one_list() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let families = |table: &str| TableSpec::read(&configs.join("tables").join(table)).unwrap().families.unwrap();
        let known = families("small_base_known.toml");
        let patterns: Vec<&str> = known.patterns().collect();
        for table in [
            "small_base_unknown.toml",
            "small_base_prompts.toml",
            "small_base_exact_match.toml",
            "small_base_clusters.toml",
        ] {
            assert_eq!(families(table).patterns().collect::<Vec<_>>(), patterns, "{table}");
        }
        let some = families("smollm2_experts.toml");
        assert!(some.patterns().all(|pattern| patterns.contains(&pattern)));
        for (set, families, tables) in
            [("function_vectors", 9, vec![&known]), ("instruction_induction", 8, vec![&known, &some])]
        {
            let text = std::fs::read_to_string(configs.join(format!("tasks/{set}.toml"))).unwrap();
            let document: toml::Table = text.parse().unwrap();
            let tasks = document["task"].as_array().unwrap().iter().map(|task| task["name"].as_str().unwrap());
            for of in tables {
                let groups = of.of_tasks(tasks.clone()).unwrap().group(tasks.clone().map(|task| (task.to_owned(), ())));
                assert_eq!(groups.len(), families, "{set}");
            }
        }
    }
}
