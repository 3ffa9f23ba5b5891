//! The injection point of a base model, and the ops that run there.
//!
//! A [`Site`] is a place in a layer where several projections read the same input. A [`Patch`] is what may be added to
//! their outputs there: a forward hook. [`GroupedLora`] applies many adapters to one packed batch, [`WeightedLora`] a
//! weighted sum whose weights are learned, and [`LoraLinear`] is a site whose adapters are trained.

mod frozen_linear;
pub mod kernels;
mod ops;
pub mod patch;
pub mod sequence_batch;
pub mod site;
mod stack_layout;

pub use frozen_linear::FrozenLinear;
pub use ops::{
    DropoutMask, GradientSink, GroupedLora, LoraLinear, PerTokenLora, SparseGradients, TokenGroup, TokenSelection,
    WeightedLora,
};
pub use patch::{Outputs, Patch, Patches};
pub use sequence_batch::{Sequence, SequenceBatch};
pub use site::{Projection, Site, SiteRole};
pub use stack_layout::{StackBlock, StackLayout};
