//! Routers whose weights do not depend on the token: one expert, all of them, or weights fitted to a task.

pub mod cat;
mod every_token;
pub mod expert_per_row;
pub mod fallback;
pub mod held_out_losses;
pub mod lorahub;
pub mod no_expert;
pub mod oracle;
pub mod poly;
pub mod row_weights;
pub mod scaled_uniform;
pub mod single;
pub mod trainable_weights;
pub mod uniform;
pub mod weight_groups;
