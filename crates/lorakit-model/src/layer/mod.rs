//! What a layer is made of, and how its steps enter candle's graph or a tape.

pub mod activation;
pub(crate) mod context;
pub mod linear;
pub mod lm_head;
pub mod norm;
pub mod rope;
pub mod tape;
