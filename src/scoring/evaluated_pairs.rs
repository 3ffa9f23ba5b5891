//! Which routers this process evaluates on which tasks.

use crate::args::part_arg::{PartArg, share_of};
use crate::args::router_arg::RouterArg;
use anyhow::Result;
use lorakit_task::Task;
use std::ops::Range;

/// All pairs of a router and a task, in the order of the routers, and which of them this process evaluates.
pub struct EvaluatedPairs<'a> {
    /// All routers.
    pub routers: &'a [RouterArg],
    /// All tasks.
    pub tasks: &'a [Task],
    /// The indices of the pairs of this process.
    share: Range<usize>,
}

impl<'a> EvaluatedPairs<'a> {
    /// Those of a part of all pairs, or all.
    ///
    /// # Errors
    /// If the part is `auto` and no scheduler states its index.
    pub fn new(routers: &'a [RouterArg], tasks: &'a [Task], part: Option<PartArg>) -> Result<Self> {
        let all = routers.len() * tasks.len();
        let share = part.map_or(Ok(0..all), |part| anyhow::Ok(share_of(part.part()?, all)))?;
        Ok(Self { routers, tasks, share })
    }

    /// Whether this process evaluates a router on a task, by their indices.
    pub fn has(&self, router: usize, task: usize) -> bool {
        self.share.contains(&(router * self.tasks.len() + task))
    }

    /// Number of pairs of this process.
    pub fn count(&self) -> usize {
        self.share.len()
    }
}
