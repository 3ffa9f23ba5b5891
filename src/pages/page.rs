//! The frame that all pages share: title, lead and style.

use super::markup::render;
use anyhow::Result;
use minijinja::Value;
use serde::Serialize;

const STYLE: &str = include_str!("page.css");

/// A page without its frame.
#[derive(Serialize)]
pub struct Page {
    /// The title, also the heading.
    pub title: String,
    /// The sentences below the heading.
    pub lead: String,
    /// Style rules of this page alone.
    pub style: Value,
    /// What [`render`] made of the page's template.
    pub body: Value,
}

impl Page {
    /// The HTML document.
    pub fn html(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Framed<'a> {
            shared_style: Value,
            #[serde(flatten)]
            page: &'a Page,
        }
        let framed = Framed { shared_style: Value::from_safe_string(STYLE.to_owned()), page: self };
        Ok(render(include_str!("page.html"), &framed)?.to_string())
    }
}
