//! An explanation as one HTML page that needs nothing else: each token in the colour of the expert that leads there.

use super::{Choice, Explanation, LEFT_OVER, Share};
use lorakit_cluster::{STYLE, escape};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Colours of the experts with the most weight; all others are grey.
const COLOURS: [&str; 10] =
    ["#2e86ab", "#de8c3c", "#5b9a55", "#a4508b", "#c8553d", "#6f5ea8", "#8c7a3d", "#3d8c85", "#d17ba0", "#4a6572"];
const OTHER: &str = "#9aa5b1";

const OWN_STYLE: &str = "\
.text { font: 16px/2.1 ui-monospace, Menlo, Consolas, monospace; margin: 0; }\n\
.text span { padding: 3px 1px; border-radius: 3px; white-space: pre-wrap; }\n\
.grid { border-spacing: 2px; border-collapse: separate; }\n\
.grid td, .grid th { padding: 2px 5px; border: 0; border-radius: 3px; text-align: center; white-space: pre; \
font: 12px/1.4 ui-monospace, Menlo, Consolas, monospace; min-width: 1.6em; }\n\
.grid th.place { text-align: right; color: var(--soft); position: sticky; left: 0; background: #fff; }\n\
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; vertical-align: -1px; }\n\
.meter { width: 220px; } .meter div { height: 10px; border-radius: 3px; }\n";

/// The page.
pub fn html(explanation: &Explanation) -> String {
    let title = format!("{}: which expert for which token", escape(&explanation.router));
    let overall = explanation.overall();
    let colours: BTreeMap<usize, &str> = overall.iter().map(|share| share.expert).zip(COLOURS).collect();
    let painter = Painter { explanation, colours };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}{OWN_STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n\
         <p>{} tokens, {} experts, {} choices per token. The stronger the colour, the higher the weight of the expert \
         that leads; point at a token to see more.</p>\n</header>\n",
        explanation.tokens.len(),
        explanation.experts.len(),
        explanation.choices.len(),
    );
    section(&mut page, "All layers together", &painter.text(&explanation.averaged(explanation.choices.iter())));
    section(&mut page, "Experts by weight", &painter.legend(&overall));
    section(&mut page, "Layer by layer", &painter.layers());
    section(&mut page, "Every choice", &painter.grid());
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn section(page: &mut String, title: &str, body: &str) {
    let _ = writeln!(page, "<section>\n<h2>{title}</h2>\n{body}</section>");
}

struct Painter<'a> {
    explanation: &'a Explanation<'a>,
    colours: BTreeMap<usize, &'a str>,
}

impl Painter<'_> {
    fn colour(&self, expert: usize) -> &str {
        self.colours.get(&expert).copied().unwrap_or(OTHER)
    }

    /// The attributes of something coloured by its leading expert; `title` lists the first few.
    fn paint(&self, place: &str, shares: &[Share]) -> String {
        let Some(leader) = shares.first() else {
            return format!(" title=\"{}: no expert\"", escape(place));
        };
        let listed: Vec<String> = shares
            .iter()
            .take(5)
            .map(|share| format!("{} {:.2}", self.explanation.name(share.expert), share.weight))
            .collect();
        // From faint to full: weights of many experts are small, and must still be told apart.
        let percent = (15.0 + 75.0 * leader.weight.clamp(0.0, 1.0).sqrt()).round();
        format!(
            " style=\"background: color-mix(in srgb, {} {percent}%, white)\" title=\"{}: {}\"",
            self.colour(leader.expert),
            escape(place),
            escape(&listed.join(", "))
        )
    }

    /// The tokens as running text.
    fn text(&self, shares: &[Vec<Share>]) -> String {
        let mut text = String::from("<p class=\"text\">");
        for ((_, token), shares) in self.explanation.tokens.iter().zip(shares) {
            let _ = write!(text, "<span{}>{}</span>", self.paint(token, shares), escape(token));
        }
        text + "</p>\n"
    }

    /// The experts with their shares of all weight; those past the colours as one.
    fn legend(&self, overall: &[Share]) -> String {
        let mut table = String::from("<table>\n");
        let mut line = |colour: &str, name: &str, weight: f64| {
            let _ = writeln!(
                table,
                "<tr><td><span class=\"key\" style=\"background: {colour}\"></span>{}</td><td class=\"number\">{weight:.3}</td>\
                 <td class=\"meter\"><div style=\"width: {:.1}%; background: {colour}\"></div></td></tr>",
                escape(name),
                100.0 * weight.clamp(0.0, 1.0)
            );
        };
        for share in overall.iter().take(COLOURS.len()) {
            line(self.colour(share.expert), self.explanation.name(share.expert), share.weight);
        }
        let rest = overall.get(COLOURS.len()..).unwrap_or_default();
        if !rest.is_empty() {
            line(OTHER, &format!("{} others", rest.len()), rest.iter().map(|share| share.weight).sum());
        }
        let left = 1.0 - overall.iter().map(|share| share.weight).sum::<f64>();
        if left > 5e-4 {
            line("var(--line)", LEFT_OVER, left);
        }
        table + "</table>\n"
    }

    fn layers(&self) -> String {
        let layers: BTreeSet<usize> =
            self.explanation.choices.iter().filter_map(|c| self.explanation.layer(c)).collect();
        let of = |layer: usize| {
            let choices = self.explanation.choices.iter().filter(move |c| self.explanation.layer(c) == Some(layer));
            (format!("layer {layer}"), self.explanation.averaged(choices))
        };
        self.table(layers.into_iter().map(of))
    }

    fn grid(&self) -> String {
        let of = |choice: &Choice| (self.explanation.place(choice), choice.tokens.clone());
        self.table(self.explanation.choices.iter().map(of))
    }

    /// A line for each place, a column for each token.
    fn table(&self, lines: impl Iterator<Item = (String, Vec<Vec<Share>>)>) -> String {
        let mut table = String::from("<table class=\"grid\">\n");
        for (place, tokens) in lines {
            let _ = write!(table, "<tr><th class=\"place\">{}</th>", escape(&place));
            for ((_, token), shares) in self.explanation.tokens.iter().zip(&tokens) {
                let _ = write!(table, "<td{}>{}</td>", self.paint(&place, shares), escape(token));
            }
            table.push_str("</tr>\n");
        }
        table + "</table>\n"
    }
}
