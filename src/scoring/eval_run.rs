//! An evaluation in progress: scores, where rows were routed, and what failed.

use crate::command_context::CommandContext;
use crate::output::progress_bar;
use crate::pages::scores_page::{RoutedTask, RoutedTasks};
use crate::scoring::evaluated_pairs::EvaluatedPairs;
use crate::scoring::failures::Failures;
use crate::scoring::prepared_routers::PreparedRouter;
use crate::scoring::results_store::ResultsStore;
use crate::scoring::routing_shares::RoutingShares;
use crate::scoring::truncation;
use anyhow::Result;
use lorakit_eval::{EvalOptions, PatchedModel, TaskScores, evaluate, score_chance};
use lorakit_fit::router::RoutedPatches;
use lorakit_fit::{RESPONSE_RATIO, ResponseRatio, pluralize};
use lorakit_model::{Base, TokenPrecision};
use lorakit_route::{LibraryStack, expert_of_task};
use lorakit_task::{Task, Tokenizer};
use std::collections::BTreeSet;

/// The chance level's name among the routers.
const CHANCE: &str = "chance";

/// What all evaluations of a run share, and what has come of them.
pub struct EvalRun<'a> {
    /// The base under every router.
    pub base: &'a Base,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The tasks, with the examples that stand before their prompts.
    pub tasks: &'a [Task],
    /// Which rows are scored, and how.
    pub options: &'a EvalOptions,
    /// The precision of scored tokens over quantized weights.
    pub precision: TokenPrecision,
    /// Where progress and warnings go.
    pub context: &'a CommandContext,
    /// Where rows were routed.
    pub shares: RoutingShares,
    /// The scores.
    pub store: ResultsStore,
    /// What could not be evaluated.
    pub failures: Failures,
}

impl EvalRun<'_> {
    /// Scores the chance level, and returns its name.
    pub fn score_chance(&mut self, tasks: &[Task]) -> Result<&'static str> {
        for task in tasks {
            let scores = score_chance(task, self.options)?;
            if !scores.metrics.is_empty() {
                self.keep(CHANCE, &task.name, &scores)?;
            }
        }
        Ok(CHANCE)
    }

    /// Scores how much more strongly the tasks' own experts respond than the others, and returns the name of these scores, none
    /// where there are none.
    /// Of several processes, the one that evaluates the first router on a task takes it.
    pub fn score_response_ratio(
        &mut self,
        pairs: &EvaluatedPairs,
        experts: &LibraryStack,
    ) -> Result<Option<&'static str>> {
        let ratio = ResponseRatio::new(self.base, self.tokenizer, experts)?;
        let taken = self.tasks.iter().enumerate().filter(|(index, _)| pairs.has(0, *index));
        let tasks: Vec<&Task> = taken.map(|(_, task)| task).collect();
        let bar = progress_bar::bar(&self.context.output, tasks.len() as u64, RESPONSE_RATIO);
        let (mut left_out, mut kept) = (Vec::new(), false);
        for task in tasks {
            match expert_of_task(&task.name, experts) {
                Err(no_expert) => left_out.push(no_expert.to_string()),
                Ok(own) => match ratio.score(task, own, self.options) {
                    Ok(scores) if scores.metrics.is_empty() => {
                        left_out.push(format!("no other expert responds to rows of the task `{}`", task.name))
                    }
                    Ok(scores) => {
                        self.keep(RESPONSE_RATIO, &task.name, &scores)?;
                        kept = true;
                    }
                    Err(error) => {
                        let (name, task) = (Some(RESPONSE_RATIO), Some(task.name.as_str()));
                        bar.suspend(|| self.failures.add(name, task, error.into(), self.context))?;
                    }
                },
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(first) = left_out.first() {
            let said = format!("{RESPONSE_RATIO}: {} left out; {first}", pluralize(left_out.len(), "task"));
            if kept { self.context.output.status(said) } else { self.context.output.warn(said) }
        }
        Ok(kept.then_some(RESPONSE_RATIO))
    }

    /// Keeps the scores of a router on a task, also in the message of an interruption.
    fn keep(&mut self, router: &str, task: &str, scores: &TaskScores) -> Result<()> {
        self.store.keep(router, task, scores)?;
        if let Some(folder) = self.store.folder() {
            self.context.interrupt.set_resume_hint(|| {
                format!(
                    "finished scores are in {}; evaluate the other routers and tasks with the same --out to add theirs",
                    folder.join("results.json").display()
                )
            });
        }
        Ok(())
    }

    /// Evaluates the pairs of this process.
    pub fn score(&mut self, pairs: &EvaluatedPairs, prepared: &[PreparedRouter]) -> Result<()> {
        let bar = progress_bar::bar(&self.context.output, pairs.count() as u64, "eval");
        // Rows are cut alike for all routers.
        let mut warned = BTreeSet::new();
        for (number, (router, prepared)) in pairs.routers.iter().zip(prepared).enumerate() {
            let own = |(index, _): &(usize, &Task)| pairs.has(number, *index);
            for (index, task) in self.tasks.iter().enumerate().filter(own) {
                let Some(RoutedPatches { patches, templates }) = prepared.of(index) else {
                    bar.inc(1);
                    continue;
                };
                let (base, tokenizer, routing) = (self.base, self.tokenizer, templates.as_ref());
                let model = PatchedModel { base, tokenizer, patches, routing, precision: self.precision };
                let scores = evaluate(&model, task, self.options, &mut |rows| {
                    bar.set_message(format!("{} on {}, {} of {} rows,", router.text, task.name, rows.done, rows.total));
                });
                self.shares.count(number, index);
                match scores {
                    Ok(scores) => {
                        let warning = truncation::warning(task, &scores, self.base.config().max_positions);
                        if let Some(warning) = warning.filter(|_| warned.insert(index)) {
                            bar.suspend(|| self.context.output.warn(warning));
                        }
                        self.keep(&router.text, &task.name, &scores)?;
                    }
                    Err(error) => {
                        let (router, task) = (Some(router.text.as_str()), Some(task.name.as_str()));
                        bar.suspend(|| self.failures.add(router, task, error.into(), self.context))?;
                    }
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Where the routers that choose among experts sent the rows of each task.
    pub fn routed_tasks<'r>(&'r self, routers: &[&'r str], experts: &'r [String]) -> Vec<RoutedTasks<'r>> {
        let of_router = |(number, &router): (usize, &&'r str)| {
            let of_task = |(index, task): (usize, &'r Task)| {
                let shares = self.shares.of(number, index, experts.len())?;
                Some(RoutedTask { task: &task.name, shares })
            };
            let tasks: Vec<RoutedTask> = self.tasks.iter().enumerate().filter_map(of_task).collect();
            (!tasks.is_empty()).then_some(RoutedTasks { router, experts, tasks })
        };
        routers.iter().enumerate().filter_map(of_router).collect()
    }
}
