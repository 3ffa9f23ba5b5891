//! Metrics of generated texts, and their means over rows.

pub mod exact_match;
pub mod rouge_l;
pub mod score;
