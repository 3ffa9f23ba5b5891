//! The scores of a table, read from the results.json of every run.

use crate::paper_table::missing_scores::{self, FoundResults};
use crate::paper_table::table_spec::{ColumnSpec, RowSpec, RunAggregation, TableSpec};
use anyhow::{Context as _, Result};
use lorakit_eval::{Results, Score};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The scores of all rows, in the order of the rows.
pub struct TableScores<'a> {
    spec: &'a TableSpec,
    rows: Vec<RowScores>,
}

/// The scores of a row.
struct RowScores {
    /// By run; none where a run has no results of the row.
    runs: Vec<Option<RunScores>>,
    /// What the row's files have besides.
    found: FoundResults,
}

impl RowScores {
    /// Whether any run has a score in the column of this number.
    fn has_score(&self, column: usize) -> bool {
        self.runs.iter().flatten().any(|run| !run[column].is_empty())
    }
}

/// The scores of one run: for each column, by task.
type RunScores = Vec<BTreeMap<String, Score>>;

/// A column by its number, or the mean of all.
#[derive(Clone, Copy)]
pub enum TableColumn {
    /// One column.
    One(usize),
    /// The mean of all columns.
    Mean,
}

impl<'a> TableScores<'a> {
    /// Reads the scores of `runs`, folders that differ by their seed.
    ///
    /// # Errors
    /// If a file exists and is not a results.json.
    pub fn read(spec: &'a TableSpec, runs: &[PathBuf]) -> Result<Self> {
        let mut files = BTreeMap::new();
        let row = |row: &RowSpec| {
            let mut found = FoundResults::default();
            let run = |run: &PathBuf| run_scores((spec, row), run, &mut files, &mut found);
            let of_runs: Vec<Option<RunScores>> = runs.iter().map(run).collect::<Result<_>>()?;
            let scores = match row.aggregation {
                RunAggregation::Mean => of_runs,
                RunAggregation::Best => vec![best_of(spec, of_runs.into_iter().flatten())],
            };
            Ok(RowScores { runs: scores, found })
        };
        let rows = spec.rows.iter().map(row).collect::<Result<_>>()?;
        Ok(Self { spec, rows })
    }

    /// The columns that are shown.
    pub fn columns(&self) -> Vec<TableColumn> {
        let ones = (0..self.spec.columns.len()).map(TableColumn::One);
        ones.chain(self.spec.mean.as_ref().map(|_| TableColumn::Mean)).collect()
    }

    /// The column of this name; without one, the column that decides.
    pub fn column(&self, name: Option<&str>) -> TableColumn {
        let found = name.and_then(|name| self.spec.columns.iter().position(|column| column.name == name));
        match found {
            Some(column) => TableColumn::One(column),
            None if self.spec.mean.is_some() => TableColumn::Mean,
            None => TableColumn::One(0),
        }
    }

    /// What describes a column: its name, scale and decimals. The mean has those of the first column.
    pub fn shown(&self, column: TableColumn) -> (&str, &ColumnSpec) {
        match column {
            TableColumn::One(at) => (&self.spec.columns[at].name, &self.spec.columns[at]),
            TableColumn::Mean => (self.spec.mean.as_deref().unwrap_or("mean"), &self.spec.columns[0]),
        }
    }

    /// The columns that plots show: the mean if there is one, else all.
    pub fn deciding(&self) -> Vec<TableColumn> {
        if self.spec.mean.is_some() { vec![TableColumn::Mean] } else { self.columns() }
    }

    /// The name of a column, and which way is better where a reader may not expect it.
    pub fn heading(&self, column: TableColumn) -> String {
        let (name, shown) = self.shown(column);
        if shown.lower_is_better() { format!("{name} (lower is better)") } else { name.to_owned() }
    }

    /// The number of a row.
    pub fn row(&self, label: &str) -> Option<usize> {
        self.spec.rows.iter().position(|row| row.label == label)
    }

    /// What the standard errors of cells are over.
    pub fn error_over(&self) -> &'static str {
        let columns = self.columns();
        let cells = (0..self.rows.len()).flat_map(|row| columns.iter().map(move |column| (row, *column)));
        let (mut seeds, mut rows) = (false, false);
        for (row, column) in cells {
            match self.of_runs(row, column).as_slice() {
                [one] => rows |= one.stderr.is_some(),
                several => seeds |= !several.is_empty(),
            }
        }
        match (seeds, rows) {
            (true, true) => "seeds (over the tasks' rows where a score is of one run or the best of several)",
            (true, false) => "seeds",
            (false, _) => "rows",
        }
    }

    /// The value of a cell in each run that has one, scaled.
    fn of_runs(&self, row: usize, column: TableColumn) -> Vec<Score> {
        self.rows[row].runs.iter().flatten().filter_map(|run| self.mean(run, column)).collect()
    }

    /// The value of a cell, scaled: the mean over tasks and runs, with the standard error over runs if there are several,
    /// else over rows of the tasks, whose errors are independent.
    pub fn cell(&self, row: usize, column: TableColumn) -> Option<Score> {
        let scores = self.of_runs(row, column);
        let values: Vec<f64> = scores.iter().map(|score| score.value).collect();
        let all = Score::mean(&values)?;
        Some(Score { stderr: all.stderr.or(scores[0].stderr), ..all })
    }

    /// What a cell is the mean of, scaled: by task (under the mean, by column), the value in each run, none where a run lacks it.
    pub fn values(&self, row: usize, column: TableColumn) -> BTreeMap<String, Vec<Option<f64>>> {
        let unit_scores =
            |run: &Option<RunScores>| run.as_ref().map_or_else(BTreeMap::new, |run| self.units(run, column));
        let runs: Vec<BTreeMap<String, Score>> = self.rows[row].runs.iter().map(unit_scores).collect();
        let names: BTreeSet<&String> = runs.iter().flat_map(BTreeMap::keys).collect();
        let in_each_run = |name: &String| runs.iter().map(|run| run.get(name).map(|score| score.value)).collect();
        names.into_iter().map(|name| (name.clone(), in_each_run(name))).collect()
    }

    /// The names of all scored tasks, of all columns: of what [`Self::gains`] compares.
    pub fn compared(&self) -> BTreeSet<&str> {
        let columns = self.spec.mean.iter().flat_map(|_| &self.spec.columns).map(|column| column.name.as_str());
        let runs = self.rows.iter().flat_map(|row| row.runs.iter().flatten());
        runs.flatten().flat_map(BTreeMap::keys).map(String::as_str).chain(columns).collect()
    }

    /// Why columns have no score in any row, each as a sentence.
    pub fn missing_columns(&self) -> Vec<String> {
        let found: Vec<&FoundResults> = self.rows.iter().map(|row| &row.found).collect();
        let unscored = (0..self.spec.columns.len()).filter(|at| !self.rows.iter().any(|row| row.has_score(*at)));
        unscored.filter_map(|at| missing_scores::of_column(&self.spec.columns[at], &found)).collect()
    }

    /// Why rows have no score in any column, each as a sentence; `runs` are the folders that were searched. Where no row has
    /// one, the columns say why.
    pub fn missing_rows(&self, runs: &str) -> Vec<String> {
        let columns = 0..self.spec.columns.len();
        let is_scored = |row: &RowScores| columns.clone().any(|at| row.has_score(at));
        let any_scored = self.rows.iter().any(is_scored);
        let rows = self.spec.rows.iter().zip(&self.rows).filter(|(_, scores)| !is_scored(scores));
        let unexplained = rows.filter(|(_, scores)| any_scored || !scores.found.has_router());
        unexplained.map(|(row, scores)| scores.found.of_row(row, &self.spec.columns, runs)).collect()
    }

    /// The cells that are means of fewer tasks or runs than those of other rows in the same column, each as a sentence.
    pub fn partial(&self) -> Vec<String> {
        let runs = || self.rows.iter().flat_map(|row| row.runs.iter().flatten());
        let mut found = Vec::new();
        for (at, column) in self.spec.columns.iter().enumerate() {
            let all: BTreeSet<&String> = runs().flat_map(|run| run[at].keys()).collect();
            for (row, scores) in self.spec.rows.iter().zip(&self.rows) {
                let counts = scores.runs.iter().map(|run| run.as_ref().map_or(0, |run| run[at].len()));
                let (fewest, most) = counts.fold((usize::MAX, 0), |(fewest, most), n| (fewest.min(n), most.max(n)));
                if most > 0 && fewest < all.len() {
                    let (label, name, tasks) = (&row.label, &column.name, all.len());
                    found.push(format!(
                        "row `{label}`: not every run has all {tasks} tasks of {name}; one has {fewest}"
                    ));
                }
            }
        }
        found
    }

    /// How much better `better` is than `worse`, scaled and positive where it is better: by task (under the mean, by
    /// column), then by run, over the tasks and runs that both have.
    pub fn gains(&self, better: usize, worse: usize, column: TableColumn) -> BTreeMap<String, Vec<f64>> {
        let paired = self.rows[better].runs.iter().zip(&self.rows[worse].runs);
        let both: Vec<(RunScores, RunScores)> = paired
            .filter_map(|(b, w)| b.as_ref().zip(w.as_ref()))
            .map(|(b, w)| (on_tasks_of(b, w), on_tasks_of(w, b)))
            .collect();
        let sign = sign(self.shown(column).1);
        let Some((first, _)) = both.first() else { return BTreeMap::new() };
        let units = self.units(first, column).into_keys();
        let gains = units.filter_map(|unit| {
            let gain = |(better, worse): &(RunScores, RunScores)| {
                let of = |run: &RunScores| self.units(run, column).get(&unit).map(|score| score.value);
                // Of a loss, equal scores would be shown as a gain of -0.
                Some(sign * (of(better)? - of(worse)?) + 0.0)
            };
            Some((unit.clone(), both.iter().map(gain).collect::<Option<Vec<f64>>>()?))
        });
        gains.collect()
    }

    /// The scaled scores that a column is the mean of: by task, or under the mean by column.
    fn units(&self, run: &RunScores, column: TableColumn) -> BTreeMap<String, Score> {
        match column {
            TableColumn::One(at) => {
                let scale = self.spec.columns[at].scale;
                run[at].iter().map(|(task, score)| (task.clone(), scaled(*score, scale))).collect()
            }
            TableColumn::Mean => {
                let of = |(at, column): (usize, &ColumnSpec)| {
                    Some((column.name.clone(), self.mean(run, TableColumn::One(at))?))
                };
                self.spec.columns.iter().enumerate().filter_map(of).collect()
            }
        }
    }

    /// The mean of [`Self::units`]; under the mean, none unless every column has one.
    fn mean(&self, run: &RunScores, column: TableColumn) -> Option<Score> {
        let units: Vec<Score> = self.units(run, column).into_values().collect();
        let complete = matches!(column, TableColumn::One(_)) || units.len() == self.spec.columns.len();
        Score::mean_of_independent(units).filter(|_| complete)
    }
}

/// One where a higher value of a column is better, else minus one.
fn sign(column: &ColumnSpec) -> f64 {
    if column.lower_is_better() { -1.0 } else { 1.0 }
}

/// For each task of each column the best score of several runs.
fn best_of(spec: &TableSpec, mut runs: impl Iterator<Item = RunScores>) -> Option<RunScores> {
    let mut best = runs.next()?;
    for run in runs {
        for ((best, run), column) in best.iter_mut().zip(run).zip(&spec.columns) {
            for (task, score) in run {
                let known = best.entry(task).or_insert(score);
                if sign(column) * score.value > sign(column) * known.value {
                    *known = score;
                }
            }
        }
    }
    Some(best)
}

/// The scores of a run on the tasks that another has too.
fn on_tasks_of(run: &RunScores, other: &RunScores) -> RunScores {
    let shared = |(own, other): (&BTreeMap<String, Score>, &BTreeMap<String, Score>)| {
        let in_both = own.iter().filter(|(task, _)| other.contains_key(*task));
        in_both.map(|(task, score)| (task.clone(), *score)).collect()
    };
    run.iter().zip(other).map(shared).collect()
}

fn scaled(score: Score, scale: f64) -> Score {
    Score { value: scale * score.value, stderr: score.stderr.map(|error| scale * error) }
}

/// The file of a row's results in a run.
pub fn results_file(row: &RowSpec, run: &Path) -> PathBuf {
    let mut path = run.join(&row.results);
    if path.extension().is_none_or(|extension| extension != "json") {
        path.push("results.json");
    }
    path
}

/// The scores of a row in one run; none where its file or its router is missing.
fn run_scores(
    (spec, row): (&TableSpec, &RowSpec),
    run: &Path,
    files: &mut BTreeMap<PathBuf, Option<Value>>,
    found: &mut FoundResults,
) -> Result<Option<RunScores>> {
    let path = results_file(row, run);
    if !files.contains_key(&path) {
        files.insert(path.clone(), read_json(&path)?);
    }
    let Some(Some(document)) = files.get(&path) else { return Ok(None) };
    let document = row.at.as_ref().map_or(document, |key| &document[key]);
    let results: Results = serde_json::from_value(document.clone())
        .with_context(|| format!("{}: expected the results of an evaluation", path.display()))?;
    found.add(row, &results);
    let Some((_, tasks)) = results.routers().find(|(router, _)| *router == row.router) else { return Ok(None) };
    let column = |column: &ColumnSpec| {
        let wanted = |task: &str| column.tasks.is_empty() || column.tasks.iter().any(|name| name == task);
        let score = |(task, result): (&String, &lorakit_eval::TaskResult)| {
            Some((task.clone(), *result.metrics.get(&column.metric)?))
        };
        tasks.iter().filter(|(task, _)| wanted(task)).filter_map(score).collect()
    };
    Ok(Some(spec.columns.iter().map(column).collect()))
}

/// A JSON document; none if there is no file.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let document = serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))?;
            Ok(Some(document))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}
