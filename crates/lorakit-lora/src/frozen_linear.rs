//! The frozen weights of a site as a plain function.

/// The frozen linear layers of a site on a CPU, their outputs side by side: `y = x Wᵀ + b`.
pub trait FrozenLinear: Send + Sync {
    /// Number of input features.
    fn input(&self) -> usize;

    /// Number of output features.
    fn output(&self) -> usize;

    /// The outputs, `[tokens, out]`, of `x`, `[tokens, in]`.
    fn forward(&self, x: &[f32]) -> Vec<f32>;

    /// The gradient of `x`, `[tokens, in]`, from that of the outputs, `[tokens, out]`.
    fn backward(&self, dy: &[f32]) -> Vec<f32>;
}
