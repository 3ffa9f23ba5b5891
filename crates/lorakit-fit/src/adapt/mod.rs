//! From a library to one target task: what training starts from, weights and routings that are fitted to few rows, and
//! the evaluation of the result on test rows.

mod compose;
mod evaluation;
mod fraction;
mod method;
mod outcomes;
mod plan;
mod record;
mod skills;
mod start;

pub use evaluation::{COLUMNS, EvaluationEvent, evaluate_adapted};
pub use fraction::Fraction;
pub use method::{METHODS, Method};
pub use outcomes::Outcomes;
pub use plan::{AdaptPlan, Adapted};
