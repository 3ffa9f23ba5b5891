//! `compare`: a table of several evaluations, with verdicts on claims.

use crate::args::usage;
use crate::command_context::CommandContext;
use crate::output::console::make_folder;
use crate::paper_table::markdown_table::markdown;
use crate::paper_table::table_claims::judge;
use crate::paper_table::table_scores::{TableScores, results_file};
use crate::paper_table::table_spec::{RowSpec, TableSpec};
use crate::plots::{curve_panels, difference_plot, score_plot};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_format::atomic::write_file;
use serde_json::{Map, Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The arguments of `compare`.
#[derive(Args, Debug)]
#[command(after_help = "Differences are paired by task and seed. A claim held if the 95 % interval of the gain lies \
    above zero, and did not hold if it lies below zero. The interval is that of a bootstrap over tasks and seeds, widened \
    for few tasks; fewer than 6 tasks decide nothing. Where the table names families of tasks, these take the place of \
    tasks. A claim is not testable where the tasks' own experts do not beat base and chance (of a loss, the base) by two \
    standard errors. With one seed a verdict is about that seed's libraries alone.")]
pub struct CompareArgs {
    /// Table TOML (configs/tables/README.md says what it holds)
    #[arg(value_name = "TABLE")]
    table: PathBuf,
    /// Folders of results, one for each seed
    #[arg(long, required = true, num_args = 1.., value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// Folder for results.json, table.md, and plots: scores.svg, differences.svg of the claims, and curves.svg of the
    /// rows that have an x; those of an earlier table are replaced or removed
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl CompareArgs {
    /// Refuses runs that do not exist or are given twice, and an output folder whose results.json is among those that are compared.
    fn check_folders(&self, spec: &TableSpec) -> Result<()> {
        for run in &self.runs {
            ensure!(run.is_dir(), "{}: no such folder; expected the results of one seed", run.display());
        }
        for (at, run) in self.runs.iter().enumerate() {
            let same = self.runs[..at].iter().find(|other| usage::is_same_file(other, run));
            usage::ensure(same.is_none(), || match same {
                Some(same) if same != run => {
                    format!(
                        "--runs {} and {} are one folder; expected one for each seed",
                        same.display(),
                        run.display()
                    )
                }
                _ => format!("--runs {}: given twice; expected one folder for each seed", run.display()),
            })?;
        }
        let Some(folder) = &self.out else { return Ok(()) };
        let output = folder.join("results.json");
        let is_output = |run: &PathBuf, row: &RowSpec| usage::is_same_file(&results_file(row, run), &output);
        usage::ensure(!self.runs.iter().any(|run| spec.rows.iter().any(|row| is_output(run, row))), || {
            format!("--out {}: its results.json is among those that are compared", folder.display())
        })
    }
}

/// Reads the results, judges the claims, and prints the table.
pub fn run(args: CompareArgs, context: &CommandContext) -> Result<()> {
    let spec = TableSpec::read(&args.table)?;
    args.check_folders(&spec)?;
    let scores = TableScores::read(&spec, &args.runs)?;
    let families = spec.families.as_ref().map(|families| families.of_tasks(scores.compared()));
    let families = families.transpose().with_context(|| args.table.display().to_string())?;
    let claims = judge(&spec, &scores, families.as_ref());
    let text = markdown(&spec, &scores, &claims);
    let row = |(at, row): (usize, &RowSpec)| {
        let cell = |column| {
            let mut document = json!(scores.cell(at, column));
            if let Some(cell) = document.as_object_mut() {
                cell.insert("values".into(), json!(scores.values(at, column)));
            }
            (scores.shown(column).0.to_owned(), document)
        };
        let cells: Map<String, Value> = scores.columns().into_iter().map(cell).collect();
        let mut document =
            json!({ "label": row.label, "sees": row.sees, "router": row.router, "scores": cells, "paper": row.paper });
        if let Some(x) = row.x {
            (document["x"], document["series"]) = (json!(x), json!(row.series));
        }
        document
    };
    let rows: Vec<Value> = spec.rows.iter().enumerate().map(row).collect();
    let runs = || args.runs.iter().map(|run| run.display().to_string()).collect::<Vec<_>>().join(", ");
    // No warning: one table serves several sets of tasks, which have other metrics.
    scores.missing_columns().into_iter().for_each(|missing| context.output.status(missing));
    for missing in scores.missing_rows(&runs()).into_iter().chain(scores.partial()) {
        context.warn(missing)?;
    }
    ensure!(rows.iter().any(is_scored), "none of the rows of {} has results in {}", args.table.display(), runs());
    let mut document = json!({
        "title": spec.title,
        "runs": args.runs,
        "rows": rows,
        "claims": claims,
        "versions": { "lorakit": env!("CARGO_PKG_VERSION") },
    });
    if let (Some(named), Some(families)) = (&spec.families, &families) {
        let tasks = |(family, pattern): (usize, &str)| (pattern.to_owned(), json!(families.tasks(family)));
        document["families"] = named.patterns().enumerate().map(tasks).collect::<Map<_, _>>().into();
    }
    if let Some(folder) = &args.out {
        make_folder(folder)?;
        let results = serde_json::to_string_pretty(&document)? + "\n";
        write_file(&folder.join("results.json"), results.as_bytes())?;
        write_file(&folder.join("table.md"), text.as_bytes())?;
        let plots = [
            ("scores.svg", Some(score_plot::svg(&spec, &scores)?)),
            ("differences.svg", difference_plot::svg(&spec.title, &claims)?),
            ("curves.svg", curve_panels::svg(&spec, &scores)?),
        ];
        for (name, plot) in plots {
            replace_plot(&folder.join(name), plot)?;
        }
    }
    context.output.result(&document, || text)
}

/// Writes a plot; one that this table lacks is removed, since it would be of an earlier table.
fn replace_plot(path: &Path, plot: Option<String>) -> Result<()> {
    match plot {
        Some(plot) => Ok(write_file(path, plot.as_bytes())?),
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{}: the earlier plot cannot be removed", path.display()))
            }
            _ => Ok(()),
        },
    }
}

/// Whether a row of the document has any score.
fn is_scored(row: &Value) -> bool {
    row["scores"].as_object().is_some_and(|cells| cells.values().any(|cell| !cell.is_null()))
}
