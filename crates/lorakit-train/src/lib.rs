//! Trains LoRA adapters, whole bases, and skills with their routing.
//!
//! A [`Job`] is what one expert is trained on, a [`TrainConfig`] how. A [`Pass`] trains several experts together over one
//! base, in memory; a [`Trainer`] divides jobs into passes, writes checkpoints and logs, and stores each finished expert in
//! a library. Gradients are computed one layer at a time ([`backward`]). Alone or together with others, an expert ends with
//! the same weights up to rounding: its row order, dropout and steps depend only on the seed and its own name.
//!
//! Other variables, such as mixing coefficients and router weights, are fitted by [`minimize`]: the caller builds patches
//! from them, and [`TokenLoss`] computes their gradients.
//!
//! Deliberately absent: routers, clusters and metrics. Nothing is printed: a callback receives each [`TrainEvent`].
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use lorakit_train::{LrSchedule, LrSchedulerType, ParameterGroup, TrainConfig, minimize};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = TrainConfig::from_toml("learning_rate = 0.1\nmax_grad_norm = 0.0", "train.toml")?;
//! let x = Var::new(&[3.0f32, -2.0], &Device::Cpu)?;
//! let minimum = Tensor::new(&[1.0f32, 0.5], &Device::Cpu)?;
//! let group = ParameterGroup::new(vec![("x".to_owned(), x.clone())], &config);
//! let schedule = LrSchedule::new(LrSchedulerType::Linear, 0.0, 200);
//! let losses = minimize(vec![group], schedule, |_, variables, gradients| {
//!     let loss = (variables[0].as_tensor() - &minimum)?.sqr()?.sum_all()?;
//!     gradients.add_loss(&loss, variables)?;
//!     Ok(f64::from(loss.to_scalar::<f32>()?))
//! })?;
//! assert!(losses[199] < 1e-6 && (x.to_vec1::<f32>()?[0] - 1.0).abs() < 1e-3);
//! # Ok(())
//! # }
//! ```

pub mod backward;
mod batch_row;
mod divergence;
mod error;
mod given_settings;
mod initial_weights;
mod isolate_non_finite;
mod job;
pub mod optim;
mod pass;
mod run;
mod setting_names;
mod setting_values;
mod step_interval;
mod train_config;
pub mod trainable;

pub use backward::backward_mode::{Activations, BackwardMode};
pub use backward::example_losses_by_token::example_losses_by_token;
pub use backward::gradients::Gradients;
pub use backward::token_loss::{FitRow, TokenLoss};
pub use error::{BoxError, Result, TrainError};
pub use given_settings::GivenSettings;
pub use job::{Init, Job, batch_indices, rows_sha256};
pub use optim::lr_schedule::{LrSchedule, LrSchedulerType};
pub use optim::optimizer::{Optimizer, ParameterGroup, minimize};
pub use pass::pass_context::PassContext;
pub use pass::{Pass, StepOutput};
pub use run::device_memory::{DeviceMemory, MemoryEstimate, peak_resident_bytes};
pub use run::expert_progress::ExpertProgress;
pub use run::loss_history::LossHistory;
pub use run::run_part::RunPart;
pub use run::run_plan::PlannedPass;
pub use run::run_summary::RunSummary;
pub use run::train_event::TrainEvent;
pub use run::trainer::Trainer;
pub use run::training_target::{FullFineTuning, LORA_SETTINGS, SKILL_SETTINGS, SkillTraining};
pub use run::{memory_estimate, routing_store};
pub use step_interval::StepInterval;
pub use train_config::{LossReduction, TrainConfig};
pub use trainable::lora_init::{config_for_adapters, init_skills, initial_a};
pub use trainable::routing_fit::{FitScope, RoutingFit};
pub use trainable::skill_mixing::SkillDims;
pub use trainable::skill_stack::{RoutingSpec, RowTasks, SkillStack};
