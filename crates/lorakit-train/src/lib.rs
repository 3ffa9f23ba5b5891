//! Fits adapters to tasks: several experts in one pass over one base, each with its own rows, schedule and optimizer.
//!
//! A [`Job`] says what one expert is trained on; [`Settings`] how. [`train_experts`] shares jobs out to passes, trains
//! them and keeps each finished expert in a library; a [`pass::Pass`] is the same without files. [`backward`] takes
//! gradients a layer at a time. Together or alone, an expert ends with the same weights up to rounding: its
//! data order, dropout and updates depend on the seed and its own name.
//!
//! What is no adapter, as coefficients and gates, is fitted by [`fit()`]: the caller makes patches of its variables, and
//! [`TokenLoss`] takes the gradients of rows under them.
//!
//! The crate knows no routers, clusters or scores, and prints nothing: what happens is told to a callback as [`Event`].

pub mod backward;
pub mod checkpoint;
pub mod dropout;
pub mod event;
pub mod fit;
mod identity;
pub mod job;
pub mod kept_routing;
mod log;
pub mod lora;
pub mod memory;
pub mod parameter;
pub mod pass;
mod plain_adamw;
pub mod product;
pub mod progress;
pub mod row_losses;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod skills;
pub mod token_loss;
mod trained;
pub mod tune;
mod watch;

pub use backward::Gradients;
pub use event::Event;
pub use fit::{Optimizer, ParameterGroup, fit};
pub use job::{Job, Start, rows_sha256};
pub use pass::{Pass, Step};
pub use product::{Model, SkillsPlan};
pub use progress::Progress;
pub use row_losses::{ranges_within, row_losses};
pub use run::{Options, Summary, train_experts, train_model, train_skills};
pub use schedule::{Schedule, Scheduler};
pub use settings::{LossReduction, Settings};
pub use skills::{SkillStack, Skills, TaskRows};
pub use token_loss::{FitRow, TokenLoss};
pub use tune::{Tuned, tune};
