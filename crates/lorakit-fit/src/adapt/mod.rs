//! From a library to one target task: what training starts from, weights and routings that are fitted to few rows, and
//! the evaluation of the result on test rows.

mod adapt_method;
mod adapt_methods;
mod adapt_plan;
mod adapter_record;
mod evaluation;
mod init_training;
mod mean;
mod no_library;
mod outcomes;
mod row_fraction;
mod shared;
mod skill_fit;
mod weighted_experts;

pub use adapt_method::{Action, AdaptMethod, AdaptMethodInfo, Adapted, Configure};
pub use adapt_methods::{ADAPT_METHODS, parse_adapt_method};
pub use adapt_plan::AdaptPlan;
pub use evaluation::{COLUMNS, EvaluationEvent, evaluate_adapted};
pub use outcomes::Outcomes;
pub use row_fraction::Fraction;
