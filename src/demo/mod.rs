//! The demo: the whole method on the base inside the binary, in a small world whose structure is known.
//!
//! [`world`] is what there is to learn, [`method`] what is done with it, [`lineup`] how it is scored, [`findings`] what
//! can be said of the scores, and [`page`] the report.

pub mod curves;
pub mod findings;
pub mod lineup;
pub mod method;
pub mod page;
pub mod world;
