//! A softmax over the highest scores of a row.

use std::sync::Arc;

/// A softmax over the `top_k` highest scores, the first of equals, and zero for the others.
pub(crate) fn top_k_softmax(scores: &[f32], top_k: usize, temperature: f32) -> Arc<[f32]> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(top_k);
    let highest = order.first().map_or(0.0, |first| scores[*first]);
    let mut weights = vec![0.0; scores.len()];
    let total: f32 = order.iter().map(|expert| ((scores[*expert] - highest) / temperature).exp()).sum();
    for expert in order {
        weights[expert] = ((scores[expert] - highest) / temperature).exp() / total;
    }
    weights.into()
}
