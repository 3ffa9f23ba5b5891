//! From a library to one target task: what training starts from, weights and routings that are fitted to few rows, and
//! the evaluation of the result on test rows.

mod adapt_method;
mod adapt_plan;
mod adapter_record;
mod evaluation;
mod init_adapter;
mod outcomes;
mod row_fraction;
mod skill_fit;
mod weighted_experts;

pub use adapt_method::{METHODS, Method};
pub use adapt_plan::{AdaptPlan, Adapted};
pub use evaluation::{COLUMNS, EvaluationEvent, evaluate_adapted};
pub use outcomes::Outcomes;
pub use row_fraction::Fraction;
