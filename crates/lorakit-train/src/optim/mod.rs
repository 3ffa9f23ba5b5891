//! AdamW, its learning-rate schedule and gradient clipping, over variables whose rows may belong to several experts.

pub mod adamw;
mod adamw_composed;
pub mod adamw_update;
pub mod clip;
pub mod lr_schedule;
pub mod optimizer;
pub mod parameter;
