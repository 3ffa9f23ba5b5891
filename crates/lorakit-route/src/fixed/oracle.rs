//! The oracle: each task is served by the expert that was trained on it.

use crate::error::{Result, RouteError, listed};
use crate::fixed::single::single_expert;
use crate::library_stack::{Expert, LibraryStack};
use crate::method_info::{MethodInfo, no_settings};
use crate::method_settings::read_none;
use crate::router::{Router, RouterContext};
use lorakit_lora::Patches;
use std::fmt;
use std::sync::Arc;

/// The router `oracle`.
pub static ORACLE: MethodInfo<dyn Router> = MethodInfo {
    name: "oracle",
    aliases: &[],
    summary: "the expert trained on the current task, else the one with its name",
    link: None,
    defaults: no_settings,
    parse: |name, typed| read_none(name, typed).map(|()| Arc::new(Oracle) as Arc<dyn Router>),
    version: 1,
};

/// The router `oracle`: on every token, the expert of [`expert_of_task`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oracle;

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(ORACLE.name)
    }
}

impl Router for Oracle {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &ORACLE
    }

    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        single_expert(experts, expert_of_task(context.task.ok_or(RouteError::NoTask)?, experts)?)
    }

    fn reads_task(&self) -> bool {
        true
    }
}

/// The index of a task's expert: the one whose recorded tasks contain the task, else the one of the same name.
///
/// # Errors
/// If there is none (the error lists the experts), or if several experts record the task and none of them has its name.
pub fn expert_of_task(task: &str, experts: &LibraryStack) -> Result<usize> {
    let recorded: Vec<usize> =
        (0..experts.len()).filter(|expert| experts.experts()[*expert].tasks.iter().any(|name| name == task)).collect();
    let named = experts.index(task).ok();
    match (recorded.as_slice(), named) {
        ([only], _) => Ok(*only),
        ([], Some(named)) => Ok(named),
        ([], None) => Err(RouteError::NoExpertForTask {
            task: task.to_owned(),
            known: listed(experts.experts().iter().map(with_tasks)),
        }),
        ([_, ..], Some(named)) if recorded.contains(&named) => Ok(named),
        ([first, ..], _) => Err(RouteError::SeveralExpertsForTask {
            task: task.to_owned(),
            experts: listed(recorded.iter().map(|expert| &experts.names()[*expert])),
            first: experts.names()[*first].clone(),
        }),
    }
}

/// An expert with its recorded tasks, as in `c0 (boolq, piqa)`.
fn with_tasks(expert: &Expert) -> String {
    if expert.tasks.is_empty() { expert.name.clone() } else { format!("{} ({})", expert.name, listed(&expert.tasks)) }
}
