//! Gradient clipping by norm: for each expert of a pass the norm of its own gradients, which `AdamW::collect` computes and
//! `Pass` clips by.

/// The factor that scales a gradient of norm `norm` down to `max_norm`; 1 where it is below, or where `max_norm` is 0.
///
/// As in `torch.nn.utils.clip_grad_norm_`: `min(1, max_norm / (norm + 1e-6))`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gradients_above_the_limit_are_scaled() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
