//! Routers that choose experts for a whole row, by its prompt.

pub mod evidence;
pub mod logo;
pub mod prompt_router;
pub mod retrieve;
pub mod task_predictor;
pub mod tfidf;
mod top_k_softmax;
