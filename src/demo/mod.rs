//! The demo: the full pipeline on the bundled model, with tasks whose families are known.
//!
//! [`setup`] opens base and tasks, [`pipeline`] trains and clusters, [`relative_norm`] measures the experts, [`comparison`]
//! scores, and [`findings`] compares the scores with the papers' claims. The report is [`crate::pages::demo_page`].

pub mod comparison;
pub mod findings;
pub mod pipeline;
pub mod relative_norm;
pub mod setup;
