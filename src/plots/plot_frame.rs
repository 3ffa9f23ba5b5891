//! The frame that all plots share: size, title, colors and notes.

use crate::pages::label::{printable, wrapped};
use crate::pages::markup::render;
use anyhow::Result;
use minijinja::Value;
use serde::Serialize;

/// Width in pixels of plots whose text stands above their marks. A phone shows it at four fifths, with readable text.
pub const WIDTH: f64 = 460.0;

/// The line height of text in pixels.
pub const LINE: f64 = 16.0;

/// Pixels between a plot's edge and what it shows.
pub const MARGIN: f64 = 14.0;

/// A plot without its frame.
pub struct PlotFrame<'a> {
    /// The title, at the top.
    pub title: &'a str,
    /// Width in pixels.
    pub width: f64,
    /// What the marks mean, below them.
    pub note: &'a str,
    /// The categories of the colors, below the note, by color.
    pub legend: Vec<LegendEntry>,
}

/// A category and its color.
#[derive(Serialize)]
pub struct LegendEntry {
    /// Its name.
    pub name: String,
    /// Its color, as in CSS.
    pub color: &'static str,
}

/// A line of text at a height.
#[derive(Serialize)]
pub struct TextLine {
    /// The middle of the line in pixels.
    pub y: f64,
    /// The text.
    pub text: String,
}

/// Lines one below the other, the first at `top`.
pub fn text_lines(text: &str, top: f64, width: f64) -> Vec<TextLine> {
    // Mean width of a character of this font at 12 pixels.
    let characters = ((width - 2.0 * MARGIN) / 6.1) as usize;
    let line = |(at, text): (usize, String)| TextLine { y: top + LINE * (at as f64 + 0.5), text };
    wrapped(text, characters).into_iter().enumerate().map(line).collect()
}

#[derive(Serialize)]
struct Framed<'a> {
    width: f64,
    height: f64,
    margin: f64,
    title: String,
    heading: Vec<TextLine>,
    note: Vec<TextLine>,
    legend: Vec<(f64, &'a LegendEntry)>,
    body: Value,
}

impl PlotFrame<'_> {
    /// Where what the plot shows begins, in pixels from the top.
    pub fn top(&self) -> f64 {
        MARGIN + LINE * self.heading().len() as f64 + 6.0
    }

    fn heading(&self) -> Vec<TextLine> {
        // The title is larger and bold.
        text_lines(self.title, MARGIN, self.width * 0.86)
    }

    /// The SVG document of a plot whose `body`, rendered from its template, ends at `bottom`.
    pub fn svg(&self, body: Value, bottom: f64) -> Result<String> {
        let note = text_lines(self.note, bottom + 6.0, self.width);
        let below = bottom + 6.0 + LINE * note.len() as f64 + 4.0;
        let framed = Framed {
            width: self.width,
            height: below + LINE * self.legend.len() as f64 + MARGIN,
            margin: MARGIN,
            title: printable(self.title),
            heading: self.heading(),
            note,
            legend: self
                .legend
                .iter()
                .enumerate()
                .map(|(at, entry)| (below + LINE * (at as f64 + 0.5), entry))
                .collect(),
            body,
        };
        Ok(render(include_str!("plot_frame.svg"), &framed)?.to_string())
    }
}
