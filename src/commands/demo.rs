//! `demo`: the whole method on the base inside the binary, with tables and a report.

use crate::context::Context;
use crate::demo::lineup::{self, Contender};
use crate::demo::page::{self, Shown};
use crate::demo::world::World;
use crate::demo::{findings, method};
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_eval::Results;
use lorakit_format::atomic::write_file;
use serde_json::json;
use std::path::PathBuf;

/// The arguments of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where libraries, results.json and report.html go
    #[arg(long, value_name = "DIR", default_value = "lorakit-demo")]
    out: PathBuf,
    /// A tenth of the work
    #[arg(long)]
    quick: bool,
}

/// Trains, clusters, trains again, scores, and reports.
pub fn run(args: DemoArgs, context: &Context) -> Result<()> {
    let world = World::open(args.quick, context)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot be made", args.out.display()))?;
    let (libraries, found) = method::run(&world, &args.out, context)?;
    let mut results = Results::default();
    (results.config, results.versions) = (
        json!({ "demo": true, "quick": args.quick, "seed": context.seed }),
        json!({ "lorakit": env!("CARGO_PKG_VERSION") }),
    );
    let contenders = lineup::score(&world, &libraries, &mut results, context)?;
    let routing = lineup::routing_by_family(&world, &libraries.private)?;
    let shown =
        Shown { world: &world, libraries: &libraries, found: &found, contenders: &contenders, routing: &routing };
    let report = args.out.join("report.html");
    write_file(&args.out.join("results.json"), results.to_json()?.as_bytes())?;
    write_file(&report, page::html(&shown).as_bytes())?;
    let sentences = findings::sentences(&contenders, &found);
    let document = json!({ "results": results, "findings": sentences, "report": report });
    context.output.result(&document, || story(&contenders, &sentences, &args.out.display().to_string()))
}

fn story(contenders: &[Contender], sentences: &[String], out: &str) -> String {
    format!(
        "{}\n\n{}\n\nLibraries, clusters.json, results.json and report.html are in {out}",
        lineup::text(contenders),
        sentences.join("\n")
    )
}
