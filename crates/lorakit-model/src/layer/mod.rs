//! The parts of a layer, and the context through which they enter candle's graph or a tape.

pub mod activation;
pub(crate) mod layer_context;
pub mod linear;
pub mod lm_head;
pub mod norm;
pub mod rope;
pub mod tape;
