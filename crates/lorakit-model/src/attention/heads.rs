//! The heads of a base's attention: their number and width, and which keys a query sees.

use candle_core::DType;
use std::ops::Range;

/// The heads of a base's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionHeads {
    /// Number of query heads.
    pub queries: usize,
    /// Number of key and value heads; each serves `queries / keys` query heads.
    pub keys: usize,
    /// Features of a head.
    pub features: usize,
    /// Whether a query sees no key after its own; if not, it sees all of its row, and there is no window.
    pub causal: bool,
    /// Sliding window: how many positions back a query sees, itself included.
    pub window: Option<usize>,
    /// The scale of scores, where it is not `1 / sqrt(features)`.
    pub scale: Option<f64>,
    /// Scores become `cap tanh(score / cap)` before the softmax.
    pub soft_cap: Option<f64>,
    /// The type in which composed attention multiplies queries, keys and weights; our kernels multiply in f32.
    pub products: DType,
}

impl AttentionHeads {
    /// Heads that see every position before them, with scores in f32 of the usual scale.
    pub fn new(queries: usize, keys: usize, features: usize) -> Self {
        Self { queries, keys, features, causal: true, window: None, scale: None, soft_cap: None, products: DType::F32 }
    }

    /// Width of q, k and v side by side.
    pub fn fused_width(&self) -> usize {
        (self.queries + 2 * self.keys) * self.features
    }

    /// Width of the keys (and of the values) of a token.
    pub fn key_width(&self) -> usize {
        self.keys * self.features
    }

    /// The scale of scores in composed attention.
    pub(crate) fn scale(&self) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (self.features as f64).sqrt())
    }

    /// The scale of scores in our kernels.
    pub(crate) fn kernel_scale(&self) -> f32 {
        self.scale.map_or_else(|| 1.0 / (self.features as f32).sqrt(), |scale| scale as f32)
    }

    /// Query heads that share one key head.
    pub(crate) fn shared(&self) -> usize {
        self.queries / self.keys
    }

    /// The keys that query `i` of `queries` sees of `keys`; of causal heads, the last key belongs to the last query.
    pub(crate) fn visible(&self, i: usize, queries: usize, keys: usize) -> Range<usize> {
        if !self.causal {
            return 0..keys;
        }
        let end = keys - queries + i + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }
}
