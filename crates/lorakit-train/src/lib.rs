//! Fits adapters to tasks: several experts in one pass over one base, each with its own rows, schedule and optimizer.
//!
//! A [`Job`] says what one expert is trained on; [`TrainConfig`] how. [`train_experts`] shares jobs out to passes, trains
//! them and keeps each finished expert in a library; a [`pass::Pass`] is the same without files. [`backward`] takes
//! gradients a layer at a time. Together or alone, an expert ends with the same weights up to rounding: its
//! data order, dropout and updates depend on the seed and its own name.
//!
//! What is no adapter, as coefficients and gates, is fitted by [`fit()`]: the caller makes patches of its variables, and
//! [`TokenLoss`] takes the gradients of rows under them.
//!
//! The crate knows no routers, clusters or scores, and prints nothing: what happens is told to a callback as [`TrainEvent`].

pub mod backward;
mod divergence;
pub mod job;
pub mod optim;
pub mod pass;
pub mod run;
pub mod train_config;
pub mod trainable;

pub use backward::example_losses::{example_losses, split_by_tokens};
pub use backward::layerwise::Gradients;
pub use backward::token_loss::{FitRow, TokenLoss};
pub use job::{Init, Job, batch_indices, rows_sha256};
pub use optim::lr_schedule::{LrSchedule, LrSchedulerType};
pub use optim::optimizer::{Optimizer, ParameterGroup, minimize};
pub use pass::{Pass, StepOutput};
pub use run::event::TrainEvent;
pub use run::expert_progress::ExpertProgress;
pub use run::trainer::{RunOptions, RunSummary, train_experts, train_model, train_skills};
pub use run::training_target::{FullFineTuning, LORA_SETTINGS, SKILL_SETTINGS, SkillTraining};
pub use run::{memory_estimate, routing_store};
pub use train_config::{LossReduction, TrainConfig};
pub use trainable::fit_routing::{FitScope, fit_routing};
pub use trainable::lora_stack::initial_a;
pub use trainable::skill_stack::{RowTasks, SkillDims, SkillStack, config_for_adapters, init_skills};
