//! The oracle: each task is served by the expert that was trained on it.

use crate::error::{Result, RouteError, first_listed, listed};
use crate::fixed::single::single_expert;
use crate::library_stack::LibraryStack;
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

    fn served(&self, tasks: &[&str], experts: &[(String, Vec<String>)]) -> Option<Vec<String>> {
        let named: Vec<(&str, &[String])> =
            experts.iter().map(|(name, tasks)| (name.as_str(), tasks.as_slice())).collect();
        // Where one is missing, all are opened, which the error then lists.
        tasks.iter().map(|task| Some(experts[index_of_task(task, &named).ok()?].0.clone())).collect()
    }
}

/// The index of a task's expert: the one whose recorded tasks contain the task, else the one of the same name.
///
/// # Errors
/// If there is none (the error lists the experts), or if several experts record the task and none of them has its name.
pub fn expert_of_task(task: &str, experts: &LibraryStack) -> Result<usize> {
    let named: Vec<(&str, &[String])> =
        experts.experts().iter().map(|expert| (expert.name.as_str(), expert.tasks.as_slice())).collect();
    index_of_task(task, &named)
}

/// [`expert_of_task`] of experts in the order of their names, each with its recorded tasks.
fn index_of_task(task: &str, experts: &[(&str, &[String])]) -> Result<usize> {
    let recorded: Vec<usize> =
        (0..experts.len()).filter(|expert| experts[*expert].1.iter().any(|name| name == task)).collect();
    let named = experts.binary_search_by_key(&task, |(name, _)| name).ok();
    match (recorded.as_slice(), named) {
        ([only], _) => Ok(*only),
        ([], Some(named)) => Ok(named),
        ([], None) => Err(RouteError::NoExpertForTask {
            task: task.to_owned(),
            known: first_listed(experts.iter().map(|(name, tasks)| with_tasks(name, tasks))),
        }),
        ([_, ..], Some(named)) if recorded.contains(&named) => Ok(named),
        ([first, ..], _) => Err(RouteError::SeveralExpertsForTask {
            task: task.to_owned(),
            experts: first_listed(recorded.iter().map(|expert| experts[*expert].0)),
            first: experts[*first].0.to_owned(),
        }),
    }
}

/// An expert with its recorded tasks, as in `c0 (boolq, piqa)`.
fn with_tasks(name: &str, tasks: &[String]) -> String {
    if tasks.is_empty() { name.to_owned() } else { format!("{name} ({})", listed(tasks)) }
}
