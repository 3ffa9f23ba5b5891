//! The comparison of merged weights with unmerged adapters: what a merge should contain, and how far logits are apart.

pub mod logit_difference;
pub mod merge_recipe;
