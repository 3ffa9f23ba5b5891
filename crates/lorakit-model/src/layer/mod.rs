//! The parts of a layer, and the context through which they enter candle's graph or a tape.

pub mod activation;
pub(crate) mod layer_context;
pub mod linear;
pub mod lm_head;
pub mod logit_scale;
pub mod norm;
pub mod qk_norm;
pub(crate) mod query_scale;
pub(crate) mod residual_sum;
pub mod rope;
pub(crate) mod row_ranges;
pub(crate) mod soft_cap;
pub mod tape;
