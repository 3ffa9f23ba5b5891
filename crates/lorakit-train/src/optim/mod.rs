//! AdamW, its learning-rate schedule and gradient clipping, over variables whose rows may belong to several experts.

pub(crate) mod adamw_composed;
pub mod lr_schedule;
pub mod optimizer;
pub mod parameter;
