//! The oracle: each task gets the expert that was trained on it.

use crate::error::{Result, RouteError, listed};
use crate::experts::{Expert, Experts};

/// The index of a task's expert: the one whose recorded tasks contain the task, else the one of the same name.
///
/// # Errors
/// Where there is none, with what there is; and where several experts record the task and none of them has its name.
pub fn expert_of(task: &str, experts: &Experts) -> Result<usize> {
    let recorded: Vec<usize> =
        (0..experts.len()).filter(|expert| experts.experts()[*expert].tasks.iter().any(|name| name == task)).collect();
    let named = experts.index(task).ok();
    match (recorded.as_slice(), named) {
        ([only], _) => Ok(*only),
        ([], Some(named)) => Ok(named),
        ([], None) => Err(RouteError::NoExpertForTask {
            task: task.to_owned(),
            known: listed(experts.experts().iter().map(described)),
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
fn described(expert: &Expert) -> String {
    if expert.tasks.is_empty() { expert.name.clone() } else { format!("{} ({})", expert.name, listed(&expert.tasks)) }
}
