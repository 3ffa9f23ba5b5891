//! A router's choices over one prompt: every token in the color of its leading expert.

use super::markup::render;
use super::page::Page;
use super::palette::COLORS;
use crate::routing_trace::{ExpertWeight, RoutingTrace, TracedChoice, UNASSIGNED};
use anyhow::Result;
use minijinja::Value;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The color of all experts but those with the most weight.
const OTHER: &str = "#9aa5b1";

/// Experts that a token's tooltip lists.
const LISTED: usize = 5;

#[derive(Serialize)]
struct Body<'a> {
    averaged: Vec<TokenCell<'a>>,
    legend: Vec<LegendRow<'a>>,
    layers: Vec<GridRow<'a>>,
    choices: Vec<GridRow<'a>>,
}

/// The tokens of one layer or one choice.
#[derive(Serialize)]
struct GridRow<'a> {
    place: String,
    tokens: Vec<TokenCell<'a>>,
}

/// A token, in the color of its leading expert where it has one.
#[derive(Serialize)]
struct TokenCell<'a> {
    text: &'a str,
    tooltip: String,
    /// Color and its percentage in a mix with white.
    color: Option<(&'a str, f64)>,
}

#[derive(Serialize)]
struct LegendRow<'a> {
    color: &'a str,
    name: String,
    weight: f64,
    percent: f64,
}

/// The HTML document.
pub fn html(trace: &RoutingTrace) -> Result<String> {
    let overall = trace.overall();
    let colors: BTreeMap<usize, &str> = overall.iter().map(|share| share.expert).zip(COLORS).collect();
    let painter = Painter { trace, colors };
    let body = Body {
        averaged: painter.averaged(),
        legend: painter.legend(&overall),
        layers: painter.layers(),
        choices: trace.choices.iter().map(|choice| painter.row(trace.place(choice), &choice.tokens)).collect(),
    };
    let lead = format!(
        "{} tokens, {} experts, {} choices per token. The stronger the color, the higher the weight of the leading \
         expert; hover over a token for details.",
        trace.tokens.len(),
        trace.experts.len(),
        trace.choices.len(),
    );
    Page {
        title: format!("{}: which expert for which token", trace.router),
        lead,
        style: Value::from_safe_string(include_str!("routing_trace_page.css").to_owned()),
        body: render(include_str!("routing_trace_page.html"), &body)?,
    }
    .html()
}

struct Painter<'a> {
    trace: &'a RoutingTrace<'a>,
    colors: BTreeMap<usize, &'a str>,
}

impl<'a> Painter<'a> {
    fn color(&self, expert: usize) -> &'a str {
        self.colors.get(&expert).copied().unwrap_or(OTHER)
    }

    /// All tokens, each with its experts averaged over all choices.
    fn averaged(&self) -> Vec<TokenCell<'a>> {
        let averaged = self.trace.averaged(self.trace.choices.iter());
        let tokens = self.trace.tokens.iter().zip(&averaged);
        tokens.map(|(token, shares)| self.cell(&token.text, &token.text, shares)).collect()
    }

    /// All tokens, each with its experts at one place.
    fn row(&self, place: String, tokens: &[Vec<ExpertWeight>]) -> GridRow<'a> {
        let texts = self.trace.tokens.iter().map(|token| token.text.as_str());
        let tokens = texts.zip(tokens).map(|(text, shares)| self.cell(&place, text, shares)).collect();
        GridRow { place, tokens }
    }

    fn cell(&self, place: &str, text: &'a str, shares: &[ExpertWeight]) -> TokenCell<'a> {
        let Some(leader) = shares.first() else {
            return TokenCell { text, tooltip: format!("{place}: no expert"), color: None };
        };
        let listed = shares.iter().take(LISTED);
        let listed: Vec<String> =
            listed.map(|share| format!("{} {:.2}", self.trace.name(share.expert), share.weight)).collect();
        // The square root keeps the small weights of many experts apart.
        let percent = (15.0 + 75.0 * leader.weight.clamp(0.0, 1.0).sqrt()).round();
        let tooltip = format!("{place}: {}", listed.join(", "));
        TokenCell { text, tooltip, color: Some((self.color(leader.expert), percent)) }
    }

    /// The experts with their shares of all weight; those past the colors as one.
    fn legend(&self, overall: &[ExpertWeight]) -> Vec<LegendRow<'a>> {
        let row = |color, name, weight: f64| LegendRow { color, name, weight, percent: 100.0 * weight.clamp(0.0, 1.0) };
        let colored = overall.iter().take(COLORS.len());
        let named = |share: &ExpertWeight| {
            row(self.color(share.expert), self.trace.name(share.expert).to_owned(), share.weight)
        };
        let mut rows: Vec<LegendRow> = colored.map(named).collect();
        let rest = overall.get(COLORS.len()..).unwrap_or_default();
        if !rest.is_empty() {
            rows.push(row(OTHER, format!("{} others", rest.len()), rest.iter().map(|share| share.weight).sum()));
        }
        let unassigned = 1.0 - overall.iter().map(|share| share.weight).sum::<f64>();
        if unassigned > 5e-4 {
            rows.push(row("var(--line)", UNASSIGNED.to_owned(), unassigned));
        }
        rows
    }

    fn layers(&self) -> Vec<GridRow<'a>> {
        let layers: BTreeSet<usize> = self.trace.choices.iter().filter_map(|choice| self.trace.layer(choice)).collect();
        let row = |layer: usize| {
            let of_layer = |choice: &&TracedChoice| self.trace.layer(choice) == Some(layer);
            let averaged = self.trace.averaged(self.trace.choices.iter().filter(of_layer));
            self.row(format!("layer {layer}"), &averaged)
        };
        layers.into_iter().map(row).collect()
    }
}
