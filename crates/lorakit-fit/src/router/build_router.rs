//! From a router to the patches that carry it out: the one place where a router meets a model.
//!
//! A router without training data is built from the library alone. For a learned one, its rows are found
//! ([`TrainingRows`]), and the state that was fitted to exactly these rows is read from the cache in the library, or fitted
//! now and written there.

use super::prompt_routing::BasePromptRouting;
use super::router_cache::{self, CacheKey};
use super::router_fit::RouterFit;
use super::router_fits::ROUTER_FITS;
use super::training_rows::TrainingRows;
use crate::error::{FitError, Result, WithContext as _};
use crate::fit_context::FitContext;
use crate::initial_seeds::warn_of_separate_mixing;
use lorakit_eval::PromptRouting;
use lorakit_lora::{Patches, Sequence};
use lorakit_route::{Mixing, Observer, Router, RouterContext, RouterState, TrainingData};
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
pub fn depends_on_task(context: &FitContext, router: &dyn Router) -> bool {
    let fitted_to_task =
        matches!(router.training_data(), Some(TrainingData::TargetTask { .. })) && context.tasks.is_empty();
    router.reads_task() || fitted_to_task
}

/// Warns where the router adds up A's that did not start from the same random values. That is so for all tasks alike, and is
/// said once by whoever builds the router for several.
pub fn warn_of_router_seeds(context: &FitContext, router: &dyn Router) {
    if router.mixing() == Mixing::Separate {
        warn_of_separate_mixing(&router.to_string(), context.library.named_records(), context.reporter);
    }
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
    let no_task = task.is_none() && context.tasks.is_empty();
    let without_task = |fit: &&dyn RouterFit| fit.state_without_task(router, context);
    let state = match no_task.then(|| ROUTER_FITS.iter().find_map(without_task)).flatten() {
        Some(state) => Some(state?),
        None => router.training_data().map(|data| state(context, router, data, task)).transpose()?,
    };
    let name = task.map(|task| task.name.as_str());
    let given = RouterContext { task: name, state: state.as_ref(), observer };
    let patches = router.patches(experts, &given)?;
    Ok(match router.prompt_router(experts, &given)? {
        Some(router) => {
            RoutedPatches { patches, templates: Box::new(BasePromptRouting { base: context.base, router }) }
        }
        None => RoutedPatches::plain(patches),
    })
}

/// The fitted state of a router: from the cache, or fitted now.
fn state(context: &FitContext, router: &dyn Router, data: TrainingData, task: Option<&Task>) -> Result<RouterState> {
    let rows = TrainingRows::find(context, data, task)?;
    let (library, key) = (&context.library.library, CacheKey::new(router, &rows)?);
    if let Some(state) = router_cache::read(library, &key)? {
        return Ok(state);
    }
    context.reporter.status(&format!("{}: fitting to rows of {}", router.info().name, rows.description()));
    let state = fit(router, &rows)?;
    if let Err(error) = router_cache::write(library, &key, &state) {
        // A library that cannot be written to can still be routed.
        context.reporter.warn(&format!("the fitted state of {} is not kept: {}", router.info().name, error.chain()));
    }
    Ok(state)
}

/// Fits what a router needs.
fn fit(router: &dyn Router, rows: &TrainingRows) -> Result<RouterState> {
    let state = ROUTER_FITS.iter().find_map(|fit| fit.fit(router, rows));
    let state = state.unwrap_or_else(|| Err(FitError::NoFit(format!("the router `{router}`"))));
    state.with_context(|| format!("fitting {}", router.info().name))
}
