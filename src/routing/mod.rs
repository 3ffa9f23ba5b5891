//! From a router as it was typed to what sits in the base's slots: the one place where a router meets a model.
//!
//! [`Routing::fill`] is what `eval`, `generate`, `logits` and `explain` call. A router that learns nothing is built from
//! the library alone. For one that learns, it finds the rows ([`lesson`]), asks the library for what was learned from
//! exactly these before ([`kept`]), else has it learned now and keeps it.
//!
//! # Adding a router
//!
//! 1. `crates/lorakit-route/src/NAME.rs`: its settings with `parse` and `Display`, its formula and source in the doc, and
//!    `patches(&self, experts, ...) -> Result<Patches>`. In `router.rs`: a variant of `Router` with its arms, and a line
//!    in `ROUTERS`. A router that learns nothing is then complete.
//!    One that decides for whole rows by their prompts implements `ByPrompt` too, and has an arm in `Router::by_prompt`;
//!    [`by_prompt`] runs the base over the prompts for it.
//! 2. If it learns: `lesson(&self)` beside the settings says from whose rows (`Lesson::Experts`: the tasks of each expert;
//!    `Lesson::Task`: the task at hand, so that it is learned and built once for each task evaluated); `patches` takes the `&Learned`, and the doc names its matrices. Add the arm to
//!    `Router::lesson`.
//! 3. `src/routing/NAME.rs`: `pub fn learn(settings, lesson: &Rows) -> Result<Learned>`, from [`Rows::examples`] and
//!    the base, and one arm in [`learn`] below. Everything that `learn` reads must come from `Rows`: it is what the
//!    kept state's hash covers (settings, base, experts, rows, seed, version, and what was trained as `routers/NAME`).

mod by_prompt;
mod cm;
mod composition;
mod evidence;
mod kept;
mod lesson;
mod phatgoose;
mod poly;
mod tp;

pub use lesson::{FitArgs, Rows};

use crate::base_source::Located;
use crate::context::Context;
use crate::experts::Opened;
use anyhow::{Context as _, Result};
use lorakit_eval::PromptRouting;
use lorakit_lora::{Patches, Row};
use lorakit_model::Base;
use lorakit_route::poly::Unseen;
use lorakit_route::{Composition, Learned, Lesson, Observer, Router, Setting};
use lorakit_task::Task;
use std::path::Path;
use std::sync::Arc;

use by_prompt::ByPrompt;

/// A base with a library, and the rows that routers may learn from.
pub struct Routing<'a, 'base> {
    /// The base.
    pub base: &'base Base,
    /// Where its tokenizer is; read only where something is learned.
    pub place: &'a Located,
    /// The library.
    pub opened: &'a Opened,
    /// The tasks of `--fit`; none: each router's own.
    pub fit: &'a [Task],
    /// The folder that task files refer to, for tasks that are found again from an expert's record.
    pub data: Option<&'a Path>,
    /// Seed, and how the user is told.
    pub context: &'a Context,
}

/// What a router puts into the slots, and what rows carry for it to read.
pub struct Filling<'a> {
    /// What sits in the slots.
    pub patches: Patches,
    /// What rows carry.
    pub templates: Box<dyn PromptRouting + 'a>,
}

impl Filling<'_> {
    /// Patches that read nothing of their rows.
    pub fn plain(patches: Patches) -> Self {
        Self { patches, templates: Box::new(Row::default()) }
    }
}

impl<'base> Routing<'_, 'base> {
    /// Whether the router is another one for another task.
    pub fn by_task(&self, router: &Router) -> bool {
        let of_task = matches!(router.lesson(), Some(Lesson::Task { .. })) && self.fit.is_empty();
        matches!(router, Router::Oracle) || of_task
    }

    /// What carries the router out, for rows of `task` where one is known; `observer`, if any, is shown every choice.
    ///
    /// # Errors
    /// Where the library does not allow the router, or there are no rows to learn from.
    pub fn fill(
        &self,
        router: &Router,
        task: Option<&Task>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Filling<'base>> {
        let learned = match (router, task) {
            (Router::Poly(settings), None) if settings.unseen == Unseen::Mean && self.fit.is_empty() => {
                Some(poly::mean(settings, self.base, &self.opened.experts, &self.opened.library)?)
            }
            _ => router.lesson().map(|lesson| self.learned(router, lesson, task)).transpose()?,
        };
        let name = task.map(|task| task.name.as_str());
        let setting = Setting { task: name, learned: learned.as_ref(), observer };
        let experts = &self.opened.experts;
        let patches = router.build(experts, &setting)?;
        Ok(match router.by_prompt(experts, &setting)? {
            Some(rule) => Filling { patches, templates: Box::new(ByPrompt { base: self.base, rule }) },
            None => Filling::plain(patches),
        })
    }

    /// What the router learned: as it was kept, or from now.
    fn learned(&self, router: &Router, lesson: Lesson, task: Option<&Task>) -> Result<Learned> {
        let rows = Rows::find(self, lesson, task)?;
        let origin = kept::Origin::of(router, &rows)?;
        if let Some(learned) = kept::read(&self.opened.library, &origin)? {
            return Ok(learned);
        }
        self.context.output.status(format!("{}: learning from rows of {}", router.name(), rows.described()));
        let learned = learn(router, &rows)?;
        if let Err(error) = kept::write(&self.opened.library, &origin, &learned) {
            // A library that cannot be written to still routes.
            self.context.output.notice(format!("what {} learned is not kept: {error:#}", router.name()));
        }
        Ok(learned)
    }
}

/// Learns what a router needs.
fn learn(router: &Router, rows: &Rows) -> Result<Learned> {
    match router {
        Router::Cm(cm) => cm::learn(cm, rows),
        Router::Phatgoose(phatgoose) => phatgoose::learn(phatgoose, rows),
        Router::Tp(tp) => tp::learn(tp, rows),
        Router::Evidence(evidence) => evidence::learn(evidence, rows),
        Router::Poly(settings) => poly::learn(settings, rows),
        Router::LoraHub(hub) => composition::learn(Composition::LoraHub(hub.clone()), rows),
        Router::Cat(cat) => composition::learn(Composition::Cat(cat.clone()), rows),
        other => Err(anyhow::anyhow!("the router {other} learns nothing")),
    }
    .with_context(|| format!("learning {}", router.name()))
}
