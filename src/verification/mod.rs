//! Comparisons of logits: merged weights with unmerged adapters, and two forms of one base.

pub mod base_forms;
pub mod logit_difference;
pub mod merge_recipe;
pub mod random_rows;
