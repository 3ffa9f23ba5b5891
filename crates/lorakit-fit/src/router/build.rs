//! From a router to the patches that carry it out: the one place where a router meets a model.
//!
//! A router without training data is built from the library alone. For a learned one, its rows are found
//! ([`TrainingRows`]), and the state that was fitted to exactly these rows is read from the cache in the library, or fitted
//! now and written there.

use super::prompt_routing::BasePromptRouting;
use super::training_rows::TrainingRows;
use super::{cache, centroid, evidence, fitted_merge, phatgoose, poly, task_predictor};
use crate::fit_context::FitContext;
use anyhow::{Context as _, Result};
use lorakit_eval::PromptRouting;
use lorakit_lora::{Patches, Sequence};
use lorakit_route::poly::Unseen;
use lorakit_route::{Composition, Learned, Lesson, Observer, Router, Setting};
use lorakit_task::Task;
use std::sync::Arc;

/// The patches of a router, and what rows carry for them to read.
pub struct RoutedPatches<'a> {
    /// The patches at the sites of the base.
    pub patches: Patches,
    /// What the rows of prompts carry.
    pub templates: Box<dyn PromptRouting + 'a>,
}

impl RoutedPatches<'_> {
    /// Patches that read nothing of their rows.
    pub fn plain(patches: Patches) -> Self {
        Self { patches, templates: Box::new(Sequence::default()) }
    }
}

/// Whether the router is a different one for each task.
pub fn depends_on_task(context: &FitContext, router: &Router) -> bool {
    let fitted_to_task = matches!(router.lesson(), Some(Lesson::Task { .. })) && context.tasks.is_empty();
    matches!(router, Router::Oracle) || fitted_to_task
}

/// Builds the router, for rows of `task` where that is known. `observer`, if any, is shown every choice.
///
/// # Errors
/// Where the library does not allow the router, or there are no rows to fit it to.
pub fn build_router<'base>(
    context: &FitContext<'_, 'base>,
    router: &Router,
    task: Option<&Task>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<RoutedPatches<'base>> {
    let experts = &context.library.experts;
    let state = match (router, task) {
        (Router::Poly(settings), None) if settings.unseen == Unseen::Mean && context.tasks.is_empty() => {
            Some(poly::mean(settings, context.base, experts, &context.library.library)?)
        }
        _ => router.lesson().map(|lesson| state(context, router, lesson, task)).transpose()?,
    };
    let name = task.map(|task| task.name.as_str());
    let setting = Setting { task: name, learned: state.as_ref(), observer };
    let patches = router.build(experts, &setting)?;
    Ok(match router.by_prompt(experts, &setting)? {
        Some(router) => {
            RoutedPatches { patches, templates: Box::new(BasePromptRouting { base: context.base, router }) }
        }
        None => RoutedPatches::plain(patches),
    })
}

/// The fitted state of a router: from the cache, or fitted now.
fn state(context: &FitContext, router: &Router, lesson: Lesson, task: Option<&Task>) -> Result<Learned> {
    let rows = TrainingRows::find(context, lesson, task)?;
    let (library, key) = (&context.library.library, cache::CacheKey::new(router, &rows)?);
    if let Some(state) = cache::read(library, &key)? {
        return Ok(state);
    }
    context.reporter.status(&format!("{}: learning from rows of {}", router.name(), rows.description()));
    let state = fit(router, &rows)?;
    if let Err(error) = cache::write(library, &key, &state) {
        // A library that cannot be written to can still be routed.
        context.reporter.warn(&format!("what {} learned is not kept: {error:#}", router.name()));
    }
    Ok(state)
}

/// Fits what a router needs.
fn fit(router: &Router, rows: &TrainingRows) -> Result<Learned> {
    match router {
        Router::Cm(cm) => centroid::fit(cm, rows),
        Router::Phatgoose(phatgoose) => phatgoose::fit(phatgoose, rows),
        Router::Tp(tp) => task_predictor::fit(tp, rows),
        Router::Evidence(evidence) => evidence::fit(evidence, rows),
        Router::Poly(settings) => poly::fit(settings, rows),
        Router::LoraHub(hub) => fitted_merge::fit(Composition::LoraHub(hub.clone()), rows),
        Router::Cat(cat) => fitted_merge::fit(Composition::Cat(cat.clone()), rows),
        other => Err(anyhow::anyhow!("the router {other} learns nothing")),
    }
    .with_context(|| format!("learning {}", router.name()))
}
