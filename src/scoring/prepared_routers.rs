//! Routers built for the tasks that they are evaluated on.

use crate::args::router_arg::RouterArg;
use crate::command_context::CommandContext;
use crate::scoring::evaluated_pairs::EvaluatedPairs;
use crate::scoring::failures::Failures;
use crate::scoring::routing_shares::RoutingShares;
use anyhow::Result;
use lorakit_fit::FitContext;
use lorakit_fit::router::{RoutedPatches, build_router, depends_on_task, warn_of_router_seeds};
use lorakit_lora::Patches;
use lorakit_task::Task;

/// A router, ready to be evaluated.
pub enum PreparedRouter<'a> {
    /// The same for all tasks.
    Same(RoutedPatches<'a>),
    /// One per task; none where it could not be built.
    ByTask(Vec<Option<RoutedPatches<'a>>>),
    /// It could not be built, or this process does not evaluate it.
    Absent,
}

impl<'a> PreparedRouter<'a> {
    /// The router for a task, by its index; none where it could not be built.
    pub fn of(&self, task: usize) -> Option<&RoutedPatches<'a>> {
        match self {
            Self::Same(routed) => Some(routed),
            Self::ByTask(per_task) => per_task[task].as_ref(),
            Self::Absent => None,
        }
    }
}

/// Builds the routers of this process, for each task where they depend on it. One that cannot be built is recorded as a
/// failure, and all others are evaluated. `shares` observes them.
pub fn prepare<'a>(
    pairs: &EvaluatedPairs,
    routing: Option<&FitContext<'_, 'a>>,
    shares: &RoutingShares,
    failures: &mut Failures,
    context: &CommandContext,
) -> Result<Vec<PreparedRouter<'a>>> {
    let EvaluatedPairs { routers, tasks, .. } = pairs;
    let mut prepared = Vec::with_capacity(routers.len());
    for (number, RouterArg { router, text }) in routers.iter().enumerate() {
        let own: Vec<Option<&Task>> =
            tasks.iter().enumerate().map(|(index, task)| pairs.has(number, index).then_some(task)).collect();
        if own.iter().all(Option::is_none) {
            prepared.push(PreparedRouter::Absent);
            continue;
        }
        let Some(routing) = routing else {
            prepared.push(PreparedRouter::Same(RoutedPatches::plain(Patches::none())));
            continue;
        };
        warn_of_router_seeds(routing, &**router);
        let mut build = |task: Option<&Task>| match build_router(routing, &**router, task, shares.observer(number)) {
            Ok(routed) => Ok(Some(routed)),
            Err(error) => {
                let name = task.map(|task| task.name.as_str());
                failures.add(Some(text), name, error.into(), context).map(|()| None)
            }
        };
        prepared.push(match depends_on_task(routing, &**router) {
            true => {
                let of = |task: Option<&Task>| task.map_or(Ok(None), |task| build(Some(task)));
                PreparedRouter::ByTask(own.into_iter().map(of).collect::<Result<_>>()?)
            }
            false => build(None)?.map_or(PreparedRouter::Absent, PreparedRouter::Same),
        });
    }
    Ok(prepared)
}
