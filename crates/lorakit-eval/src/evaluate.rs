//! Scores a model on a task.

use crate::error::{EvalError, Result};
use lorakit_model::TokenPrecision;
use lorakit_task::{Example, LossTokens, Metric, ReplyOpening, Row, Split, Task};
use serde::{Deserialize, Serialize};

use crate::choice_scores::{Question, chosen, questions, score_questions};
use crate::eval_progress::{EvalProgress, EvalStage};
use crate::generate_options::GenerateOptions;
use crate::generation::{GenerationEvent, generate};
use crate::likelihood::example_losses;
use crate::metrics::exact_match::{exact_match_by, exact_match_normalized};
use crate::metrics::rouge_l::rouge_l;
use crate::metrics::score::TaskScores;
use crate::patched_model::PatchedModel;
use crate::sample::Sample;
use crate::token_budget::TokenBudget;
use crate::truncated_rows::TruncatedRows;

/// Which rows are scored, and in batches of which size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalOptions {
    /// The split of the task's rows.
    pub split: Split,
    /// Maximum number of rows, from the start of the split.
    pub limit: Option<usize>,
    /// Maximum tokens per forward. Changes scores only by rounding.
    pub batch_tokens: usize,
    /// [`GenerateOptions::cache_bytes`].
    pub cache_bytes: u64,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { split: Split::Test, limit: None, batch_tokens: 2048, cache_bytes: 1 << 30 }
    }
}

/// Scores a model on a task: all of [`Task::reported_metrics`], and always the loss.
///
/// `exact_match` comes with `exact_match_normalized`. Text is generated greedily. Rows longer than the base's context lose
/// the beginning of their prompt, and [`TaskScores::truncated`] counts them. No prompt is cut to make room for new tokens: if
/// there is less than the task asks for, fewer are generated.
///
/// # Errors
/// If the split has no rows, a row cannot be tokenized, nothing of a row's prompt would be left, or a likelihood is not
/// finite.
pub fn evaluate(
    model: &PatchedModel,
    task: &Task,
    options: &EvalOptions,
    progress: &mut (dyn FnMut(EvalProgress) + Send),
) -> Result<TaskScores> {
    let rows = task.rows(options.split, options.limit)?;
    if rows.is_empty() {
        return Err(EvalError::NoRows { name: task.name.clone() });
    }
    let quantize_activations = model.precision == TokenPrecision::EightBit;
    let sample = |row: &&Row| {
        let sample = Sample::new(row, Example::prompt_text(row, model.tokenizer)?);
        Ok(Sample { quantize_activations, ..sample })
    };
    let samples = rows.iter().map(sample).collect::<lorakit_task::Result<_>>()?;
    let truncated = TruncatedRows::default();
    let mut evaluation = Evaluation { model, task, options, rows, samples, truncated, progress };
    evaluation.run().map_err(|source| EvalError::Task {
        name: task.name.clone(),
        path: task.path.clone(),
        source: Box::new(source),
    })?;
    Ok(TaskScores::of(evaluation.samples, evaluation.truncated))
}

/// An evaluation in progress.
struct Evaluation<'a> {
    model: &'a PatchedModel<'a>,
    task: &'a Task,
    options: &'a EvalOptions,
    rows: Vec<&'a Row>,
    samples: Vec<Sample>,
    truncated: TruncatedRows,
    progress: &'a mut (dyn FnMut(EvalProgress) + Send),
}

impl Evaluation<'_> {
    fn run(&mut self) -> Result<()> {
        let asked = |kind: fn(Metric) -> bool| self.task.metrics.iter().any(|&metric| kind(metric));
        let (choices, generation) = (asked(Metric::needs_choices), asked(Metric::needs_generation));
        if choices {
            self.choices()?;
        }
        // The correct choice is the row's answer, so scored choices include the loss; with loss=all the prompt's counts too.
        if !choices || self.model.tokenizer.encoding().loss == LossTokens::All {
            self.losses()?;
        }
        if generation {
            self.generation()?;
        }
        Ok(())
    }

    fn losses(&mut self) -> Result<()> {
        let encode = |row: &&Row| Example::encode(row, self.model.tokenizer, self.model.max_length());
        let examples: Vec<Example> = self.rows.iter().map(encode).collect::<lorakit_task::Result<_>>()?;
        // Rows whose choices are scored are counted already.
        if self.samples.iter().all(|sample| sample.choices.is_empty()) {
            self.count_truncated(examples.iter().map(std::slice::from_ref))?;
        }
        let mut done = report(EvalStage::Likelihood, self.rows.len(), self.progress);
        let losses = example_losses(self.model, &examples, self.options.batch_tokens, &mut done)?;
        for (sample, loss) in self.samples.iter_mut().zip(losses) {
            if !loss.is_finite() {
                return Err(EvalError::NonFiniteLoss { row: sample.row, loss });
            }
            sample.metrics.insert(Metric::Loss.name().into(), loss);
        }
        Ok(())
    }

    fn choices(&mut self) -> Result<()> {
        let questions = questions(self.model, &self.rows)?;
        self.count_truncated(questions.iter().map(|question: &Question| question.examples.as_slice()))?;
        let mut done = report(EvalStage::Choices, self.rows.len(), self.progress);
        let scores = score_questions(self.model, &self.rows, &questions, self.options.batch_tokens, &mut done)?;
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

    /// Counts the rows that were cut; each item has the examples of one row. An error where nothing of a prompt is left.
    fn count_truncated<'e>(&mut self, rows: impl Iterator<Item = &'e [Example]>) -> Result<()> {
        let (beginning, max_length) = (self.model.tokenizer.bare_prompt_len()?, self.model.max_length());
        for (row, examples) in self.rows.iter().zip(rows) {
            let empty = |example: &&Example| example.truncation.prompt > 0 && example.prompt_len <= beginning;
            if let Some(example) = examples.iter().find(empty) {
                return Err(EvalError::NoRoomForPrompt { row: row.number, answer: example.target().len(), max_length });
            }
            self.truncated.count_examples(examples);
        }
        Ok(())
    }

    /// The rows' prompts for generation, whole where they leave room for a new token.
    fn generation_prompts(&mut self, max_new_tokens: usize) -> Result<Vec<Vec<u32>>> {
        let (tokenizer, positions) = (self.model.tokenizer, self.model.max_length());
        let mut prompts = Vec::new();
        for row in &self.rows {
            let whole = Example::encode_row_prompt(row, tokenizer, usize::MAX)?;
            let budget = TokenBudget::new(whole.len(), max_new_tokens, positions);
            self.truncated.count_generation(budget, whole.len(), max_new_tokens);
            self.truncated.long_answers += usize::from(self.has_long_answers(row, max_new_tokens)?);
            prompts.push(match budget.prompt < whole.len() {
                true => Example::encode_row_prompt(row, tokenizer, budget.prompt)?,
                false => whole,
            });
        }
        Ok(prompts)
    }

    /// Whether no accepted answer of a row can be generated whole.
    fn has_long_answers(&self, row: &Row, max_new_tokens: usize) -> Result<bool> {
        if self.task.generation.extract.is_some() {
            return Ok(false);
        }
        for answer in row.accepted() {
            if self.model.tokenizer.encode_without_special(answer)?.len() <= max_new_tokens {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn generation(&mut self) -> Result<()> {
        let settings = &self.task.generation;
        let opening = |row: &&Row| ReplyOpening::new(row, self.model.tokenizer);
        let openings: Vec<ReplyOpening> = self.rows.iter().map(opening).collect::<lorakit_task::Result<_>>()?;
        let is_in_opening = |stop: &String| openings.iter().any(|opening| opening.contains(stop));
        let (late_stop, stop): (Vec<String>, _) = settings.stop.iter().cloned().partition(is_in_opening);
        let config = GenerateOptions {
            max_new_tokens: settings.max_new_tokens,
            stop,
            batch_tokens: self.options.batch_tokens,
            cache_bytes: self.options.cache_bytes,
            ..GenerateOptions::default()
        };
        let prompts = self.generation_prompts(config.max_new_tokens)?;
        let mut done = report(EvalStage::Generation, self.rows.len(), self.progress);
        let mut finished = 0;
        let generated = generate(self.model, &prompts, &config, &mut |_, event| {
            if let GenerationEvent::End(_) = event {
                finished += 1;
                done(finished);
            }
        });
        let generated = generated.map_err(|error| in_row(error, &self.rows))?;
        for ((sample, generated), opening) in self.samples.iter_mut().zip(generated).zip(&openings) {
            score_text(cut_at_stop(opening.answer(&generated.text), &late_stop), opening, self.task, sample)?;
            sample.generated = Some(generated);
        }
        Ok(())
    }
}

/// The error of a prompt as that of its row.
fn in_row(error: EvalError, rows: &[&Row]) -> EvalError {
    match error {
        EvalError::Prompt { prompt, source } => EvalError::Row { row: rows[prompt - 1].number, source },
        other => other,
    }
}

/// Reports finished rows of a stage to `progress`.
fn report(stage: EvalStage, total: usize, progress: &mut (dyn FnMut(EvalProgress) + Send)) -> impl FnMut(usize) {
    move |done| progress(EvalProgress { stage, done, total })
}

/// The answer up to the first stop text that the template itself writes before replies, where generation could not stop.
fn cut_at_stop<'t>(answer: &'t str, stop: &[String]) -> &'t str {
    let begun = if stop.is_empty() { answer } else { answer.trim_start() };
    let end = stop.iter().filter_map(|stop| begun.find(stop.as_str())).min();
    end.map_or(begun, |end| &begun[..end])
}

/// The metrics of the answer in a generated text. A text without a match of the task's `extract` has no answer and is wrong.
fn score_text(text: &str, opening: &ReplyOpening, task: &Task, sample: &mut Sample) -> Result<()> {
    let answer = task.generation.extract.as_ref().map_or(Some(text), |extract| extract.apply(text));
    score_answer(answer, opening, task, sample)
}

/// The part of an accepted answer that is compared: what the task's `extract` finds, or all of it.
pub(crate) fn gold<'a>(accepted: &'a str, opening: &ReplyOpening, task: &Task) -> &'a str {
    let accepted = opening.accepted(accepted);
    task.generation.extract.as_ref().and_then(|extract| extract.apply(accepted)).unwrap_or(accepted)
}

/// The metrics of the answer that was found in a text.
pub(crate) fn score_answer(
    answer: Option<&str>,
    opening: &ReplyOpening,
    task: &Task,
    sample: &mut Sample,
) -> Result<()> {
    let accepted: Vec<String> =
        sample.accepted.iter().map(|accepted| gold(accepted, opening, task).to_owned()).collect();
    let mut put = |name: &str, value: f64| sample.metrics.insert(name.to_string(), value);
    for metric in task.reported_metrics() {
        match metric {
            Metric::ExactMatch => {
                let comparison = &task.generation.comparison;
                let exact = answer.is_some_and(|text| exact_match_by(comparison, text, &accepted));
                put(metric.name(), f64::from(exact));
            }
            Metric::ExactMatchNormalized => {
                let normalized = answer.is_some_and(|text| exact_match_normalized(text, &accepted));
                put(metric.name(), f64::from(normalized));
            }
            Metric::RougeL => {
                put(metric.name(), answer.map_or(Ok(0.0), |text| rouge_l(text, &accepted))?);
            }
            Metric::Loss | Metric::Acc | Metric::AccNorm | Metric::AccTok => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_at_a_stop_that_generation_passed_over() {
        let stop = ["\n".to_owned(), "Q:".to_owned()];
        assert_eq!(cut_at_stop("\n yes\nQ: b", &stop), "yes");
        assert_eq!(cut_at_stop("yes Q: b\n", &stop), "yes ");
        assert_eq!(cut_at_stop("\nyes\n", &[]), "\nyes\n");
    }
}
