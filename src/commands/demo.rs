//! `demo`: runs the full pipeline on the bundled model.

use crate::command_context::CommandContext;
use crate::demo::comparison::{self, ScoreRow};
use crate::demo::findings::Findings;
use crate::demo::pipeline;
use crate::demo::relative_norm::RelativeNorms;
use crate::demo::setup::Setup;
use crate::output::console::make_folder;
use crate::pages::demo_page::{self, DemoResults};
use anyhow::Result;
use clap::Args;
use lorakit_eval::Results;
use lorakit_format::atomic::write_file;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The arguments of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Folder for the libraries, results.json and report.html
    #[arg(long, value_name = "DIR", default_value = "lorakit-demo")]
    out: PathBuf,
    /// Do about a fifth of the work
    #[arg(long)]
    quick: bool,
}

#[derive(Serialize)]
struct DemoDocument<'a> {
    results: &'a Results,
    headline: &'a [String],
    findings: &'a [String],
    /// Of the private experts.
    relative_norm: RelativeNorms,
    report: &'a Path,
}

/// Trains, clusters, trains again, scores, and writes the report.
pub fn run(args: DemoArgs, context: &CommandContext) -> Result<()> {
    let setup = Setup::open(args.quick, context)?;
    make_folder(&args.out)?;
    let (libraries, clusters) = pipeline::run(&setup, &args.out, context)?;
    let mut results = Results::default();
    (results.config, results.versions) = (
        json!({ "demo": true, "quick": args.quick, "seed": context.seed }),
        json!({ "lorakit": env!("CARGO_PKG_VERSION") }),
    );
    let scores = comparison::score(&setup, &libraries, &mut results, context)?;
    let routing = comparison::routing_by_family(&setup, &libraries.private)?;
    let relative_norm = RelativeNorms::of(&setup, &libraries.private)?;
    let findings = Findings::of(&scores, &setup, relative_norm, &clusters, &results);
    let shown = DemoResults {
        setup: &setup,
        libraries: &libraries,
        clusters: &clusters,
        scores: &scores,
        findings: &findings,
        routing: &routing,
    };
    let report = args.out.join("report.html");
    write_file(&args.out.join("results.json"), results.to_json()?.as_bytes())?;
    write_file(&report, demo_page::html(&shown)?.as_bytes())?;
    let Findings { headline, sentences } = &findings;
    let document = DemoDocument { results: &results, headline, findings: sentences, relative_norm, report: &report };
    context.output.result(&document, || text(&scores, &findings, &args.out))
}

fn text(scores: &[ScoreRow], findings: &Findings, out: &Path) -> String {
    format!(
        "{}\n\n{}\n\n{}\n\nLibraries, clusters.json, results.json and report.html are in {}",
        findings.headline.join("\n"),
        comparison::text(scores),
        findings.sentences.join("\n"),
        out.display()
    )
}
