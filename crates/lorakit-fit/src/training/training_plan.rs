//! Which experts are trained on which rows of which tasks.

use super::train_context::TrainContext;
use crate::error::{FitError, Result, WithContext as _};
use crate::pluralize::pluralize;
use crate::task_record::encoded_task_record;
use lorakit_adapter::Library;
use lorakit_cluster::{Cluster, Clusters};
use lorakit_format::rng::Key;
use lorakit_task::{Example, ReplySource, Split, Task};
use lorakit_train::{Job, StepInterval, TrainConfig};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// An expert to be trained.
#[derive(Clone, Debug)]
pub struct TrainingPlan<'a> {
    /// Its name.
    pub name: String,
    /// The tasks that it is trained on.
    pub tasks: Vec<&'a Task>,
    /// Its part of their rows, as (index, number of parts); `None` where it has all rows.
    pub part: Option<(usize, usize)>,
}

impl<'a> TrainingPlan<'a> {
    /// An expert on all rows of its tasks.
    pub fn new(name: impl Into<String>, tasks: Vec<&'a Task>) -> Self {
        Self { name: name.into(), tasks, part: None }
    }
}

/// An expert for each task.
pub fn private(tasks: &[Task]) -> Vec<TrainingPlan<'_>> {
    tasks.iter().map(|task| TrainingPlan::new(&task.name, vec![task])).collect()
}

/// One expert, `joint`, for all tasks.
pub fn joint(tasks: &[Task]) -> TrainingPlan<'_> {
    TrainingPlan::new("joint", tasks.iter().collect())
}

/// `parts` experts, `examples_0` and so on, each on a random part of the rows of all tasks (RandExamples of
/// <https://arxiv.org/abs/2405.11157>, Table 2).
///
/// # Errors
/// Where there are fewer rows than parts.
pub fn random_examples(tasks: &[Task], parts: usize) -> Result<Vec<TrainingPlan<'_>>> {
    let rows = tasks.iter().map(|task| task.count(Split::Train)).sum();
    if parts > rows {
        return Err(FitError::TooManyParts { parts, rows });
    }
    let plan = |part| TrainingPlan {
        part: Some((part, parts)),
        ..TrainingPlan::new(format!("examples_{part}"), tasks.iter().collect())
    };
    Ok((0..parts).map(plan).collect())
}

/// An expert for each cluster. `place` names the source of the clusters in messages; `library` holds the experts that
/// were clustered, where it exists.
///
/// # Errors
/// Where a cluster has a task that is not among `tasks`.
pub fn of_clusters<'a>(
    clusters: &Clusters,
    place: &str,
    tasks: &'a [Task],
    library: Option<&Library>,
) -> Result<Vec<TrainingPlan<'a>>> {
    let plan = |cluster: &Cluster| -> Result<TrainingPlan<'a>> {
        let names = task_names(cluster, library)?;
        let find = |name: &String| {
            tasks.iter().find(|task| task.name == *name).ok_or_else(|| FitError::ClusterTask {
                place: place.to_owned(),
                cluster: cluster.name.clone(),
                task: name.clone(),
            })
        };
        Ok(TrainingPlan::new(&cluster.name, names.iter().map(find).collect::<Result<_>>()?))
    };
    clusters.clusters().iter().map(plan).collect()
}

/// The tasks of a cluster: as the file lists them, else those that its experts were trained on, else, for experts
/// without a record, those of the same names.
fn task_names(cluster: &Cluster, library: Option<&Library>) -> Result<Vec<String>> {
    if !cluster.tasks.is_empty() {
        return Ok(cluster.tasks.clone());
    }
    let mut names = Vec::new();
    for expert in &cluster.experts {
        let record = match library.filter(|library| library.contains(expert)) {
            Some(library) => library.record(expert)?,
            None => None,
        };
        let own = record
            .map_or_else(|| vec![expert.clone()], |record| record.tasks.into_iter().map(|task| task.name).collect());
        names.extend(own);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The experts with their rows as tokens.
///
/// # Errors
/// Where any expert has no rows to train on, or a row cannot be read.
pub fn jobs(plans: &[TrainingPlan], settings: &TrainConfig, context: &TrainContext) -> Result<Vec<Job>> {
    each_job(plans, settings, context).into_iter().collect()
}

/// As [`jobs`], with a result for each expert. A task that several experts share is tokenized once.
pub fn each_job(plans: &[TrainingPlan], settings: &TrainConfig, context: &TrainContext) -> Vec<Result<Job>> {
    let length = settings.max_length.min(context.base.config().max_positions);
    let validates = settings.eval_steps != Some(StepInterval::NEVER);
    let mut encoded: BTreeMap<&str, Result<[Vec<Example>; 2], String>> = BTreeMap::new();
    for task in plans.iter().flat_map(|plan| &plan.tasks) {
        if !encoded.contains_key(task.name.as_str()) {
            let rows = rows_of(task, length, validates, context).map_err(|error| error.chain());
            encoded.insert(&task.name, rows);
        }
    }
    let job = |plan: &TrainingPlan| {
        let own = |task: &&Task| encoded[task.name.as_str()].as_ref().map_err(|why| FitError::SharedRows(why.clone()));
        let own = plan.tasks.iter().map(own).collect::<Result<Vec<_>>>()?;
        let of = |split: usize| {
            let rows = own.iter().flat_map(|rows| rows[split].clone()).collect();
            part_of(rows, plan.part, context.seed)
        };
        let (train, validation) = (of(0), of(1));
        if train.is_empty() {
            return Err(FitError::NoTrainingRows(plan.name.clone()));
        }
        // Of tasks that have none, `rows_of` has warned.
        if validates && validation.is_empty() && own.iter().any(|rows| !rows[1].is_empty()) {
            context.reporter.warn(&format!("expert `{}` has no validation rows to choose the best step by", plan.name));
        }
        Ok(Job {
            name: plan.name.clone(),
            tasks: plan.tasks.iter().map(|task| encoded_task_record(task, context.tokenizer)).collect(),
            train,
            validation,
            init: None,
            row_shards: plan.part.map_or(1, |(_, parts)| parts),
            // A part is drawn from the rows of all tasks.
            task_rows: if plan.part.is_some() { Vec::new() } else { own.iter().map(|rows| rows[0].len()).collect() },
        })
    };
    let jobs: Vec<Result<Job>> = plans.iter().map(job).collect();
    warn_of_warmup(jobs.iter().flatten(), settings, context);
    jobs
}

/// Warns of experts whose warm-up, of a given number of steps, takes all of their steps.
fn warn_of_warmup<'j>(jobs: impl Iterator<Item = &'j Job>, settings: &TrainConfig, context: &TrainContext) {
    let Some(warmup) = settings.warmup_steps.filter(|steps| *steps > 0) else { return };
    let warms_only = jobs.filter(|job| job.steps(settings) <= warmup);
    let steps: Vec<usize> = warms_only.map(|job| job.steps(settings)).collect();
    if let Some(most) = steps.iter().max() {
        context.reporter.warn(&format!(
            "all steps of {} (at most {most}) are warm-up, of warmup_steps={warmup}: the learning_rate is never reached",
            pluralize(steps.len(), "expert")
        ));
    }
}

/// A task's rows for training and validation. It is a warning if there are none for a validation that is wanted.
fn rows_of(task: &Task, length: usize, validates: bool, context: &TrainContext) -> Result<[Vec<Example>; 2]> {
    let encode = |split: Split| -> Result<Vec<Example>> {
        if task.count(split) == 0 && split == Split::Validation {
            if validates {
                context
                    .reporter
                    .warn(&format!("task `{}` has no validation rows to choose the best step by", task.name));
            }
            return Ok(Vec::new());
        }
        let rows = task.rows(split, None)?;
        let encoded = rows.into_par_iter().map(|row| Example::encode(row, context.tokenizer, length));
        // The error is that of the first row that has one, on any number of threads.
        let encoded: Vec<lorakit_task::Result<Example>> = encoded.collect();
        encoded
            .into_iter()
            .collect::<lorakit_task::Result<_>>()
            .with_context(|| format!("task `{}` ({})", task.name, task.path.display()))
    };
    let both = [encode(Split::Train)?, encode(Split::Validation)?];
    let cut = |part: fn(&Example) -> usize| both.iter().flatten().filter(|example| part(example) > 0).count();
    let targets = cut(|example| example.truncation.target);
    warn_of_replies(task, &both, context);
    let messages: usize = both.iter().flatten().map(|example| example.truncation.messages).sum();
    if messages > 0 {
        let rows = cut(|example| example.truncation.messages);
        context.reporter.warn(&format!(
            "task `{}`: {} longer than {length} tokens lost the oldest turns, {} in all",
            task.name,
            pluralize(rows, "conversation"),
            pluralize(messages, "message")
        ));
    }
    warn_of_prompts(task, &both, length, context)?;
    if targets > 0 {
        context.reporter.warn(&format!(
            "task `{}`: {} with a target longer than {length} tokens lost its end",
            task.name,
            pluralize(targets, "row")
        ));
    }
    Ok(both)
}

/// Warns of rows that lost a part of their prompt, and of those that lost all of it, of which the answer is learned without a
/// question.
fn warn_of_prompts(task: &Task, rows: &[Vec<Example>; 2], length: usize, context: &TrainContext) -> Result<()> {
    let bare = context.tokenizer.bare_prompt_len()?;
    let cut = rows.iter().flatten().filter(|example| example.truncation.prompt > 0);
    let (lost, shortened): (Vec<&Example>, Vec<&Example>) = cut.partition(|example| example.prompt_len <= bare);
    if !shortened.is_empty() {
        context.reporter.warn(&format!(
            "task `{}`: {} longer than {length} tokens lost the beginning of the prompt",
            task.name,
            pluralize(shortened.len(), "row")
        ));
    }
    let answer = lost.iter().map(|example| example.target().len() + example.truncation.target).max();
    if let Some(answer) = answer {
        context.reporter.warn(&format!(
            "task `{}`: {} lost the whole prompt, since answers alone have up to {answer} tokens and a row has at most \
             {length}",
            task.name,
            pluralize(lost.len(), "row")
        ));
    }
    Ok(())
}

/// Warns of conversations whose replies end with no token at which generation stops, of those whose calls are left out, and
/// of those of which earlier replies are not where the template renders them at the end.
fn warn_of_replies(task: &Task, rows: &[Vec<Example>; 2], context: &TrainContext) {
    for (source, loss) in [
        (ReplySource::GenerationBlocks, "the loss is on the template's {% generation %} blocks"),
        (ReplySource::LastReply, "the loss is on the last reply alone"),
    ] {
        let found = rows.iter().flatten().filter(|example| example.reply_source == source).count();
        if found > 0 {
            context.reporter.warn(&format!(
                "task `{}`: the chat template renders earlier replies of {} otherwise than the last one; {loss}",
                task.name,
                pluralize(found, "conversation")
            ));
        }
    }
    let uncalled = rows.iter().flatten().filter(|example| example.drops_calls).count();
    if uncalled > 0 {
        context.reporter.warn(&format!(
            "task `{}`: the chat template does not render `tool_calls`, so that of {} only the texts beside the calls are \
             learned",
            task.name,
            pluralize(uncalled, "conversation")
        ));
    }
    let endless = rows.iter().flatten().filter(|example| !example.has_stop_token).count();
    if endless > 0 {
        context.reporter.warn(&format!(
            "task `{}`: the chat template ends the replies of {} with no token at which generation stops, so that the expert \
             does not learn to stop. End replies with `{{{{ eos_token }}}}` in the base's chat template, add the token that \
             ends them to `eos_token_id` in its generation_config.json, or generate with --stop",
            task.name,
            pluralize(endless, "conversation")
        ));
    }
}

/// Every `parts`th row of a random order, from the `part`th. The order depends on the seed and the number of rows only.
fn part_of(rows: Vec<Example>, part: Option<(usize, usize)>, seed: u64) -> Vec<Example> {
    let Some((part, parts)) = part else { return rows };
    let order = Key::new(seed, "random examples").stream().permutation(rows.len());
    order.into_iter().skip(part).step_by(parts).map(|at| rows[at].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_parts_hold_every_row_once() {
        let ids_of = |rows: Vec<Example>| rows.iter().map(|row| row.tokens[0]).collect::<Vec<u32>>();
        let ids = |seed| [0, 1, 2].map(|part| ids_of(part_of(rows(), Some((part, 3)), seed)));
        let mut all = ids(5).concat();
        assert_eq!(ids(5).map(|part| part.len()), [4, 4, 3]);
        all.sort_unstable();
        assert_eq!(all, (0..11).collect::<Vec<_>>());
        assert_eq!(ids(5), ids(5));
        assert_ne!(ids(5), ids(6));
        assert_eq!(part_of(rows(), None, 5).len(), 11);
    }

    fn rows() -> Vec<Example> {
        (0..11).map(|id| Example::new(&[id], &[2])).collect()
    }
}
