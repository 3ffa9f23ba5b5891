//! The demo's report.

use super::heat_map::similarity_map;
use super::loss_curves::{LossCurve, mean, plot};
use super::markup::render;
use super::page::Page;
use crate::demo::comparison::{ScoreRow, Summary, score_text};
use crate::demo::findings::Findings;
use crate::demo::pipeline::{FamilyClusters, TrainedLibraries};
use crate::demo::setup::Setup;
use crate::output::text_table::ABSENT;
use anyhow::Result;
use lorakit_eval::Score;
use lorakit_fit::OpenLibrary;
use lorakit_task::skills;
use lorakit_train::LossHistory;
use minijinja::Value;
use serde::Serialize;

/// Everything that the page shows.
pub struct DemoResults<'a> {
    /// The tasks and the base.
    pub setup: &'a Setup,
    /// What was trained.
    pub libraries: &'a TrainedLibraries,
    /// The clusters of the private experts.
    pub clusters: &'a FamilyClusters,
    /// The scores.
    pub scores: &'a [ScoreRow],
    /// What they say.
    pub findings: &'a Findings,
    /// Arrow's share of routing weight: a row per family of prompts, a column per family of experts.
    pub routing: &'a [Vec<f64>],
}

#[derive(Serialize)]
struct Body<'a> {
    headline: &'a [String],
    scores: Vec<ScoreCells>,
    findings: &'a [String],
    similarity_map: Value,
    loss_curves: Value,
    families: Vec<&'static str>,
    routing: Vec<RoutingRow>,
}

/// A row of the score table; cells without a score are dashes.
#[derive(Serialize)]
struct ScoreCells {
    label: &'static str,
    cells: [String; 4],
}

#[derive(Serialize)]
struct RoutingRow {
    family: &'static str,
    shares: Vec<f64>,
}

/// The HTML document.
pub fn html(results: &DemoResults) -> Result<String> {
    let setup = results.setup;
    let title = format!("{} experts, {} families, one modular model", setup.training.len(), setup.families.len());
    let lead = format!(
        "A base model of {:.1} million parameters, with {} training tasks and {} held-out tasks from {} families of \
         string skills. Experts are LoRAs of rank {}, all trained in this run.",
        setup.base.parameters() as f64 / 1e6,
        setup.training.len(),
        setup.held_out.len(),
        setup.families.len(),
        setup.config.rank
    );
    let names = || setup.families.iter().map(|family| family.name());
    let routing = names().zip(results.routing).map(|(family, shares)| RoutingRow { family, shares: shares.clone() });
    let body = Body {
        headline: &results.findings.headline,
        scores: results.scores.iter().map(cells).collect(),
        findings: &results.findings.sentences,
        similarity_map: similarity_map(&results.clusters.report, &results.clusters.similarity)?,
        loss_curves: plot(&loss_curves(setup, &results.libraries.private)?)?,
        families: names().collect(),
        routing: routing.collect(),
    };
    let style = Value::from_safe_string(include_str!("demo_page.css").to_owned());
    Page { title, lead, style, body: render(include_str!("demo_page.html"), &body)? }.html()
}

fn cells(row: &ScoreRow) -> ScoreCells {
    let cell = |summary: Option<Summary>, score: fn(&Summary) -> Score, percent: bool| {
        summary.map_or(ABSENT.to_owned(), |summary| score_text(score(&summary), percent))
    };
    ScoreCells {
        label: row.label,
        cells: [
            cell(row.training, |summary| summary.exact_match, true),
            cell(row.training, |summary| summary.loss, false),
            cell(row.held_out, |summary| summary.exact_match, true),
            cell(row.held_out, |summary| summary.loss, false),
        ],
    }
}

/// The mean training loss of each family's private experts.
fn loss_curves(setup: &Setup, private: &OpenLibrary) -> Result<Vec<LossCurve>> {
    let losses = |family| {
        let names = private.experts.names().iter().filter(|name| skills::family_of(name) == Some(family));
        let of = |name: &String| -> Result<Option<Vec<f64>>> {
            let history = private.library.record(name)?.as_ref().and_then(LossHistory::of);
            Ok(history.map(|history| history.train.into_iter().flatten().collect()))
        };
        names.filter_map(|name| of(name).transpose()).collect::<Result<Vec<_>>>()
    };
    setup
        .families
        .iter()
        .map(|&family| Ok(LossCurve { name: family.name().to_owned(), losses: mean(&losses(family)?) }))
        .collect()
}
