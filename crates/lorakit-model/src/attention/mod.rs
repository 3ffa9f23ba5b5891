//! Attention over packed sequences: one op, `dispatch`, and the implementations that it chooses among. It is causal or
//! not, with biases by distance or without, of tokens to themselves, to a cache or to an encoder's output.
//!
//! On a CPU: `blockwise` (matrix products), `small_head` (vectors over queries) and `few_queries` (decoding). On other
//! devices, and as the reference of tests: `composed` and `composed_cached`, made of candle's own ops.

pub(crate) mod attention_layout;
pub(crate) mod blockwise;
pub(crate) mod composed;
pub(crate) mod composed_cached;
pub(crate) mod dispatch;
pub(crate) mod distance_bias;
pub(crate) mod distance_buckets;
pub(crate) mod few_queries;
pub(crate) mod heads;
pub(crate) mod lane_major;
pub(crate) mod lane_transpose;
pub(crate) mod score_masks;
pub(crate) mod sdpa;
pub(crate) mod segment;
pub(crate) mod small_head;
pub(crate) mod softmax;

pub use attention_layout::AttentionLayout;
pub use composed::{composed_rotate, composed_self_attention};
pub use composed_cached::composed_cached_attention;
pub use dispatch::{cached_attention, rotate, self_attention};
pub use distance_buckets::DistanceBuckets;
pub use heads::AttentionHeads;
pub use segment::AttentionSegment;
