//! The demo's report: one HTML page that needs nothing else.

use super::curves::{Curve, mean, plot};
use super::findings;
use super::lineup::{Contender, Summary, shown};
use super::method::{Found, Libraries};
use super::world::World;
use lorakit_cluster::{STYLE, similarity_map};
use lorakit_eval::Score;
use lorakit_fit::OpenLibrary;
use lorakit_task::skills;
use std::fmt::Write;

/// Everything that the page shows.
pub struct Shown<'a> {
    /// The tasks and the base.
    pub world: &'a World,
    /// What was trained.
    pub libraries: &'a Libraries,
    /// The clusters.
    pub found: &'a Found,
    /// The table.
    pub contenders: &'a [Contender],
    /// Where Arrow sends each family's prompts.
    pub routing: &'a [Vec<f64>],
}

/// Text as it stands in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page.
pub fn html(shown: &Shown) -> String {
    let world = shown.world;
    let title = format!("{} experts, {} families, one modular model", world.training.len(), world.families.len());
    let lead = format!(
        "A base of {:.1} million parameters, {} trained tasks and {} held-out ones of {} families of string skills. \
         Experts are LoRAs of rank {}; everything here was trained just now.",
        world.base.parameters() as f64 / 1e6,
        world.training.len(),
        world.held_out.len(),
        world.families.len(),
        world.settings.rank
    );
    let findings: String = findings::sentences(shown.contenders, shown.found)
        .iter()
        .fold(String::new(), |list, sentence| list + "<p class=\"finding\">" + &escape(sentence) + "</p>\n");
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}{OWN_STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n<p>{lead}</p>\n</header>\n"
    );
    section(&mut page, "Scores", &scores(shown.contenders));
    section(&mut page, "What is seen, and what is not", &findings);
    page.push_str("<div class=\"columns\">\n<div class=\"wide\">\n");
    section(
        &mut page,
        "Similarity of the private experts, in cluster order",
        &similarity_map(&shown.found.report, &shown.found.similarity),
    );
    page.push_str("</div>\n<div>\n");
    section(&mut page, "Training loss of private experts, by family", &plot(&curves(world, &shown.libraries.private)));
    section(&mut page, "Where Arrow sends the tokens of each family's prompts", &routing(world, shown.routing));
    page.push_str("</div>\n</div>\n</main>\n</body>\n</html>\n");
    page
}

const OWN_STYLE: &str = ".finding { margin: 0 0 6px; }\n.best-cell { font-weight: 600; }\n\
    .share { text-align: center; padding: 5px 8px; font-size: 12px; font-variant-numeric: tabular-nums; border: 0; }\n\
    .columns > div { flex-basis: 604px; }\n";

fn section(page: &mut String, title: &str, body: &str) {
    let _ = writeln!(page, "<section>\n<h2>{title}</h2>\n{body}</section>");
}

fn scores(contenders: &[Contender]) -> String {
    let mut table = String::from(
        "<table>\n<tr><th></th><th>trained tasks: exact match %</th><th>loss</th><th>held-out tasks: exact match %</th><th>loss</th></tr>\n",
    );
    let cell = |summary: Option<Summary>, part: fn(&Summary) -> Score, percent: bool| {
        format!("<td class=\"number\">{}</td>", summary.map_or("–".to_owned(), |s| shown(part(&s), percent)))
    };
    for c in contenders {
        let _ = writeln!(
            table,
            "<tr><td>{}</td>{}{}{}{}</tr>",
            escape(c.label),
            cell(c.training, |s| s.exact_match, true),
            cell(c.training, |s| s.loss, false),
            cell(c.held_out, |s| s.exact_match, true),
            cell(c.held_out, |s| s.loss, false)
        );
    }
    table
        + "</table>\n<p class=\"note\">Means over tasks, with standard errors. The oracle knows each row's task; held-out tasks have no expert of their own.</p>\n"
}

/// The mean training loss of each family's private experts.
fn curves(world: &World, private: &OpenLibrary) -> Vec<Curve> {
    let losses = |family| {
        let own = private
            .experts
            .names()
            .iter()
            .zip(&private.records)
            .filter(move |(name, _)| skills::family_of(name) == Some(family));
        own.filter_map(|(_, record)| {
            let values = record.as_ref()?.losses["train"].as_array()?;
            Some(values.iter().filter_map(serde_json::Value::as_f64).collect())
        })
        .collect::<Vec<Vec<f64>>>()
    };
    world
        .families
        .iter()
        .map(|&family| Curve { name: family.name().to_owned(), values: mean(&losses(family)) })
        .collect()
}

/// Shares of routing weight: a row for each family of prompts, a column for each family of experts.
fn routing(world: &World, shares: &[Vec<f64>]) -> String {
    let mut table = String::from("<table>\n<tr><th>prompts of</th>");
    for family in &world.families {
        let _ = write!(table, "<th class=\"share\">{}</th>", family.name());
    }
    table.push_str("</tr>\n");
    for (family, row) in world.families.iter().zip(shares) {
        let _ = write!(table, "<tr><td>{}</td>", family.name());
        for share in row {
            let ink = if *share > 0.55 { "#fff" } else { "inherit" };
            let _ = write!(
                table,
                "<td class=\"share\" style=\"background:rgba(46,134,171,{:.2});color:{ink}\">{:.0}</td>",
                share.min(1.0),
                100.0 * share
            );
        }
        table.push_str("</tr>\n");
    }
    table
        + "</table>\n<p class=\"note\">Percent of the routing weight that goes to the private experts of each family, over all sites. An even share would be one column's part of the experts.</p>\n"
}
