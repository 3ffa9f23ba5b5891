//! What a task asks for, computed.

use anyhow::{Context, Result, ensure};
use lorakit_task::{Example, Metric, Row, Split, Task};
use serde::{Deserialize, Serialize};

use crate::eval_progress::{EvalProgress, EvalStage};
use crate::generation::{GenerationConfig, GenerationEvent, generate};
use crate::likelihood::example_losses;
use crate::metrics::exact_match::{exact_match, exact_match_normalized};
use crate::metrics::rouge_l::rouge_l;
use crate::metrics::score::TaskScores;
use crate::multiple_choice::{chosen, score_choices};
use crate::patched_model::PatchedModel;
use crate::sample::Sample;

/// The name under which the exact match after normalisation stands beside [`Metric::ExactMatch`].
pub const EXACT_MATCH_NORMALIZED: &str = "exact_match_normalized";

/// Which rows are scored, and how many at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalOptions {
    /// The part of a task's rows.
    pub split: Split,
    /// Only the first rows of the split.
    pub limit: Option<usize>,
    /// Tokens that one forward holds at most. Another number changes scores by rounding only.
    pub batch_tokens: usize,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { split: Split::Test, limit: None, batch_tokens: 2048 }
    }
}

/// Scores a model on a task: everything in [`Task::metrics`], and always the loss.
///
/// `exact_match` comes with [`EXACT_MATCH_NORMALIZED`]. Rows longer than the base was made for lose their beginning.
/// Text is generated greedily.
///
/// # Errors
/// Where the split has no rows, a row cannot be tokenised, or a likelihood is not finite.
pub fn evaluate(
    model: &PatchedModel,
    task: &Task,
    options: &EvalOptions,
    progress: &mut dyn FnMut(EvalProgress),
) -> Result<TaskScores> {
    let rows = task.rows(options.split, options.limit)?;
    ensure!(!rows.is_empty(), "task `{}`: a limit of 0 leaves no row to score", task.name);
    let samples = rows.iter().map(|row| Sample::new(row)).collect();
    let mut evaluation = Evaluation { model, task, options, rows, samples, progress };
    evaluation.run().with_context(|| format!("task `{}` ({})", task.name, task.path.display()))?;
    Ok(TaskScores::of(evaluation.samples))
}

/// A task's rows, with what is known of each so far.
struct Evaluation<'a> {
    model: &'a PatchedModel<'a>,
    task: &'a Task,
    options: &'a EvalOptions,
    rows: Vec<&'a Row>,
    samples: Vec<Sample>,
    progress: &'a mut dyn FnMut(EvalProgress),
}

impl Evaluation<'_> {
    fn run(&mut self) -> Result<()> {
        let asked = |kind: fn(Metric) -> bool| self.task.metrics.iter().any(|&metric| kind(metric));
        let (choices, generation) = (asked(Metric::needs_choices), asked(Metric::needs_generation));
        // The right choice is the row's answer, so that scored choices hold the loss already.
        if choices {
            self.choices()?;
        } else {
            self.losses()?;
        }
        if generation {
            self.generation()?;
        }
        Ok(())
    }

    fn losses(&mut self) -> Result<()> {
        let encode = |row: &&Row| Example::encode(row, self.model.vocabulary, self.model.max_length());
        let examples: Vec<Example> = self.rows.iter().map(encode).collect::<lorakit_task::Result<_>>()?;
        let mut done = report(EvalStage::Likelihood, self.rows.len(), self.progress);
        let losses = example_losses(self.model, &examples, self.options.batch_tokens, &mut done)?;
        for (sample, loss) in self.samples.iter_mut().zip(losses) {
            ensure!(loss.is_finite(), "row {}: the loss is {loss}; are all weights finite?", sample.row);
            sample.metrics.insert(Metric::Loss.name().into(), loss);
        }
        Ok(())
    }

    fn choices(&mut self) -> Result<()> {
        let mut done = report(EvalStage::Choices, self.rows.len(), self.progress);
        let scores = score_choices(self.model, &self.rows, self.options.batch_tokens, &mut done)?;
        for (sample, choices) in self.samples.iter_mut().zip(scores) {
            let Some(gold) = sample.gold else { continue };
            sample.metrics.insert(Metric::Loss.name().into(), choices[gold].loss);
            for &metric in &self.task.metrics {
                if let Some(choice) = chosen(metric, &choices) {
                    sample.metrics.insert(metric.name().into(), f64::from(choice == gold));
                }
            }
            sample.choices = choices;
        }
        Ok(())
    }

    fn generation(&mut self) -> Result<()> {
        let settings = &self.task.generation;
        let config = GenerationConfig {
            max_new_tokens: settings.max_new_tokens,
            stop: settings.stop.clone(),
            batch_tokens: self.options.batch_tokens,
            ..GenerationConfig::default()
        };
        let room = self.model.max_length().saturating_sub(config.max_new_tokens).max(1);
        let encode = |row: &&Row| Example::encode_prompt(&row.prompt, self.model.vocabulary, room);
        let prompts: Vec<Vec<u32>> = self.rows.iter().map(encode).collect::<lorakit_task::Result<_>>()?;
        let mut done = report(EvalStage::Generation, self.rows.len(), self.progress);
        let mut finished = 0;
        let generated = generate(self.model, &prompts, &config, &mut |_, event| {
            if let GenerationEvent::End(_) = event {
                finished += 1;
                done(finished);
            }
        })?;
        for (sample, generated) in self.samples.iter_mut().zip(generated) {
            judge(&generated.text, self.task, sample)?;
            sample.generated = Some(generated);
        }
        Ok(())
    }
}

/// Tells `progress` how many rows of a stage are done.
fn report(stage: EvalStage, total: usize, progress: &mut dyn FnMut(EvalProgress)) -> impl FnMut(usize) {
    move |done| progress(EvalProgress { stage, done, total })
}

/// The metrics of a generated text. A text in which the task's `extract` finds nothing has no answer, and is wrong.
fn judge(text: &str, task: &Task, sample: &mut Sample) -> Result<()> {
    let extract = task.generation.extract.as_ref();
    let answer = extract.map_or(Some(text), |extract| extract.apply(text));
    let gold = |accepted: &String| extract.and_then(|extract| extract.apply(accepted)).unwrap_or(accepted).to_string();
    let accepted: Vec<String> = sample.accepted.iter().map(gold).collect();
    let mut put = |name: &str, value: f64| sample.metrics.insert(name.to_string(), value);
    for &metric in &task.metrics {
        match metric {
            Metric::ExactMatch => {
                let holds =
                    |rule: fn(&str, &[String]) -> bool| f64::from(answer.is_some_and(|text| rule(text, &accepted)));
                put(metric.name(), holds(exact_match));
                put(EXACT_MATCH_NORMALIZED, holds(exact_match_normalized));
            }
            Metric::RougeL => {
                put(metric.name(), answer.map_or(Ok(0.0), |text| rouge_l(text, &accepted))?);
            }
            Metric::Loss | Metric::Acc | Metric::AccNorm | Metric::AccTok => {}
        }
    }
    Ok(())
}
