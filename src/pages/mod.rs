//! Self-contained HTML pages: no scripts, no fonts, no network.
//!
//! Each page is a template (`*.html`) and a struct of what it shows. [`markup`] renders both; it escapes every value,
//! except markup that a template rendered before.

pub mod cluster_page;
pub mod demo_page;
pub mod heat_map;
pub mod label;
pub mod loss_curves;
pub mod markup;
pub mod page;
pub mod palette;
pub mod routing_trace_page;
pub mod scores_page;
pub mod silhouette_charts;
