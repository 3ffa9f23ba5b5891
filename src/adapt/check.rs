//! The check of adapted tasks: their test rows, under the base and under the base with the adapter.

use crate::output::table;
use crate::progress;
use crate::scoring::tables::cell;
use crate::training::World;
use anyhow::Result;
use lorakit_adapter::Library;
use lorakit_eval::{EvalOptions, PatchedModel, Results, Row, evaluate};
use lorakit_lora::Patches;
use lorakit_route::{Expert, Experts, expert};
use lorakit_task::{Split, Task};

/// The two columns of the check.
const COLUMNS: [&str; 2] = ["base", "adapted"];

/// Scores `tasks` on their test rows, or the first `limit` of them: the base, and the library's expert of the task's name.
/// A task without test rows is left out, with a notice.
pub fn check(world: &World, library: &Library, tasks: &[&Task], limit: Option<usize>) -> Result<Results> {
    let options = EvalOptions { split: Split::Test, limit, ..EvalOptions::default() };
    let bar = progress::bar(&world.context.output, 2 * tasks.len() as u64, "check");
    let mut results = Results::default();
    for task in tasks {
        if let Err(error) = task.rows(options.split, options.limit) {
            bar.suspend(|| world.context.output.notice(format!("task `{}` is not checked: {error:#}", task.name)));
            bar.inc(2);
            continue;
        }
        let adapter = Expert::new(&task.name, library.adapter(&task.name)?);
        let adapted = Experts::new([adapter], world.base.sites(), world.base.device())?;
        for (name, patches) in COLUMNS.iter().zip([Patches::none(), expert::one(&adapted, 0)?]) {
            bar.set_message(format!("{name} on {},", task.name));
            let routing = &Row::default();
            let model = PatchedModel { base: world.base, vocabulary: world.vocabulary, patches: &patches, routing };
            results.insert(name, &task.name, &evaluate(&model, task, &options, &mut |_| ())?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

/// A line for each task and metric.
pub fn text(results: &Results, tasks: &[&Task]) -> String {
    let mut lines = Vec::new();
    for task in tasks {
        let Some(adapted) = results.get(COLUMNS[1], &task.name) else { continue };
        for metric in adapted.metrics.keys() {
            let score = |column: &str| results.get(column, &task.name)?.metrics.get(metric).copied();
            let scores = COLUMNS.map(|column| cell(score(column)));
            lines.push([task.name.clone(), metric.clone(), adapted.n.to_string()].into_iter().chain(scores).collect());
        }
    }
    table(["task", "metric", "test rows", COLUMNS[0], COLUMNS[1]], lines)
}
