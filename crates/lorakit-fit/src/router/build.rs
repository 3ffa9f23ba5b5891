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
use lorakit_route::fixed::poly::Unseen;
use lorakit_route::{
    Cat, CatMerge, Centroid, Evidence, LoraHub, Observer, Phatgoose, Poly, Router, RouterContext, RouterState,
    TaskPredictor, TrainingData,
};
use lorakit_task::Task;
use std::any::Any;
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
pub fn depends_on_task(context: &FitContext, router: &dyn Router) -> bool {
    let fitted_to_task =
        matches!(router.training_data(), Some(TrainingData::TargetTask { .. })) && context.tasks.is_empty();
    router.reads_task() || fitted_to_task
}

/// Builds the router, for rows of `task` where that is known. `observer`, if any, is shown every choice.
///
/// # Errors
/// Where the library does not allow the router, or there are no rows to fit it to.
pub fn build_router<'base>(
    context: &FitContext<'_, 'base>,
    router: &dyn Router,
    task: Option<&Task>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<RoutedPatches<'base>> {
    let experts = &context.library.experts;
    let any: &dyn Any = router;
    let state = match (any.downcast_ref::<Poly>(), task) {
        (Some(poly), None) if poly.settings.unseen == Unseen::Mean && context.tasks.is_empty() => {
            Some(poly::mean(poly, context.base, experts, &context.library.library)?)
        }
        _ => router.training_data().map(|lesson| state(context, router, lesson, task)).transpose()?,
    };
    let name = task.map(|task| task.name.as_str());
    let setting = RouterContext { task: name, state: state.as_ref(), observer };
    let patches = router.patches(experts, &setting)?;
    Ok(match router.prompt_router(experts, &setting)? {
        Some(router) => {
            RoutedPatches { patches, templates: Box::new(BasePromptRouting { base: context.base, router }) }
        }
        None => RoutedPatches::plain(patches),
    })
}

/// The fitted state of a router: from the cache, or fitted now.
fn state(context: &FitContext, router: &dyn Router, lesson: TrainingData, task: Option<&Task>) -> Result<RouterState> {
    let rows = TrainingRows::find(context, lesson, task)?;
    let (library, key) = (&context.library.library, cache::CacheKey::new(router, &rows)?);
    if let Some(state) = cache::read(library, &key)? {
        return Ok(state);
    }
    context.reporter.status(&format!("{}: learning from rows of {}", router.info().name, rows.description()));
    let state = fit(router, &rows)?;
    if let Err(error) = cache::write(library, &key, &state) {
        // A library that cannot be written to can still be routed.
        context.reporter.warn(&format!("what {} learned is not kept: {error:#}", router.info().name));
    }
    Ok(state)
}

/// Fits what a router needs.
fn fit(router: &dyn Router, rows: &TrainingRows) -> Result<RouterState> {
    let any: &dyn Any = router;
    let state = if let Some(cm) = any.downcast_ref::<Centroid>() {
        centroid::fit(cm, rows)
    } else if let Some(phatgoose) = any.downcast_ref::<Phatgoose>() {
        phatgoose::fit(phatgoose, rows)
    } else if let Some(tp) = any.downcast_ref::<TaskPredictor>() {
        task_predictor::fit(tp, rows)
    } else if let Some(evidence) = any.downcast_ref::<Evidence>() {
        evidence::fit(evidence, rows)
    } else if let Some(poly) = any.downcast_ref::<Poly>() {
        poly::fit(poly, rows)
    } else if let Some(hub) = any.downcast_ref::<LoraHub>() {
        fitted_merge::fit(hub, rows)
    } else if let Some(cat) = any.downcast_ref::<Cat>() {
        fitted_merge::fit(&CatMerge(cat.clone()), rows)
    } else {
        Err(anyhow::anyhow!("the router {router} is not fitted to rows"))
    };
    state.with_context(|| format!("learning {}", router.info().name))
}
