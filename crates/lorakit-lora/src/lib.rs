//! The injection point of a base model, and the ops that run there.
//!
//! A [`Site`] is where several projections of a layer read the same input, and a [`Patch`] is what
//! may be added there; [`grouped`] is the product by which many adapters are applied at once, [`gated`] the one
//! whose weights are learned, and [`AdaptedSite`] a site whose adapters train, with its way back.

mod adapted_site;
pub mod cpu;
pub mod gated;
pub mod grouped;
mod grouped_backward;
mod groups;
mod layouts;
pub mod patch;
mod plain_grouped;
pub mod product;
mod row_gradients;
pub mod rows;
pub mod site;
mod token_gated;
pub mod vjp;

pub use adapted_site::{AdaptedSite, Frozen, Mask};
pub use gated::Gated;
pub use grouped::Grouped;
pub use groups::{Group, Tokens};
pub use layouts::{Block, Layouts};
pub use patch::{Outputs, Patch, Patches};
pub use row_gradients::{Collector, RowGradients};
pub use rows::{Row, Rows};
pub use site::{Projection, Site};
pub use token_gated::TokenGated;
