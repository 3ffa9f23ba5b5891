//! `suite:skills`: synthetic tasks on short strings whose structure is known, drawn from a seed.
//!
//! Each [`SkillFamily`] is one latent skill (shift letters along the alphabet, reorder them, pick one ...) with four
//! training tasks, two held-out tasks and a prompt pattern of its own: `<r|dkwm>` asks for `mwkd`, `+1:dkwm;` for
//! `elxn`. Compositions nest the prompt of one skill in that of another. So the correct clustering of the experts is
//! known, and so is the correct expert for every row.
//!
//! [`pretraining_rows`] is the text that the base `pico` is trained on. It contains the alphabet, general patterns, the
//! suite's operations shown by example, and the suite's prompt patterns with any answer but the right one: what a
//! prompt asks for is left for the experts to learn.

mod operation;
mod pretraining;
mod skill_family;
mod skill_task;
mod suite_part;
mod suite_tasks;
mod text_rng;

pub use operation::{Operation, Positions, Reordering};
pub use pretraining::pretraining_rows;
pub use skill_family::SkillFamily;
pub use skill_task::{SKILL_TASKS, Skill, SkillTask};
pub use suite_part::SuitePart;
pub(crate) use suite_tasks::load;
pub use suite_tasks::{SEED, family_of, labels, skill_task, tasks};
