//! Around the scoring of routers: what could not be scored, what is kept, and how it is told.

pub mod failures;
pub mod store;
