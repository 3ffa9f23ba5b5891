//! The validation of a pass's experts.

use crate::backward::example_losses_by_token::example_losses_by_token;
use crate::batch_row::equal_runs;
use crate::error::Result;
use crate::isolate_non_finite::isolate_non_finite;
use crate::pass::Pass;
use crate::pass::pass_context::PassContext;
use std::collections::BTreeSet;
use std::ops::Range;

impl Pass<'_> {
    /// Validates the experts that are due, and keeps the weights of those that improved.
    pub(super) fn validate(&mut self, active: &[usize]) -> Result<Vec<(usize, f32)>> {
        let due: Vec<usize> = active.iter().copied().filter(|&expert| self.is_due(expert)).collect();
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let patches = self.trainable.patches(None)?;
        let indexed = |&e: &usize| self.jobs[e].validation.iter().enumerate().map(move |(index, row)| (e, index, row));
        let rows: Vec<_> = due.iter().flat_map(indexed).collect();
        let owned: Vec<_> =
            rows.iter().map(|&(e, index, row)| (self.trainable.validation_owner(e, index), row)).collect();
        let PassContext { base, batch_tokens, .. } = self.context;
        let losses = |parts: &[Range<usize>]| -> Result<Vec<f64>> {
            let of = |part: &Range<usize>| example_losses_by_token(base, &patches, &owned[part.clone()], batch_tokens);
            Ok(parts.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
        };
        let not_finite = |losses: &Vec<f64>| {
            let bad = rows.iter().zip(losses).filter(|(_, loss)| !loss.is_finite());
            bad.map(|((e, ..), _)| e).collect::<BTreeSet<_>>().len()
        };
        let by_expert = equal_runs(rows.iter().map(|(e, ..)| *e));
        let together = std::iter::once(0..rows.len()).collect();
        let losses = isolate_non_finite(losses, not_finite, [together, by_expert])?;
        let mut validated = Vec::new();
        for expert in due {
            let own: Vec<f64> =
                rows.iter().zip(&losses).filter(|((e, ..), _)| *e == expert).map(|(_, &loss)| loss).collect();
            let loss = (own.iter().sum::<f64>() / own.len() as f64) as f32;
            if loss.is_finite() {
                self.record_validation(expert, loss)?;
                validated.push((expert, loss));
                continue;
            }
            // Of several tasks, or of a random part, the number would be one among the rows of all.
            let job = &self.jobs[expert];
            let is_of_task = job.tasks.len() < 2 && !job.task_rows.is_empty();
            let row = own.iter().position(|loss| !loss.is_finite()).filter(|_| is_of_task);
            let row = row.map_or(String::new(), |row| format!(", first at row {} of its validation rows", row + 1));
            self.progress[expert].failure = Some(format!(
                "after step {} its validation loss was {loss}{row}; try a lower learning_rate",
                self.step
            ));
        }
        Ok(validated)
    }

    fn is_due(&self, expert: usize) -> bool {
        let (job, config) = (&self.jobs[expert], self.context.config);
        let Some(every) = job.eval_interval(config) else { return false };
        let turn = self.step.is_multiple_of(every) || self.step == job.steps(config);
        turn && self.progress[expert].failure.is_none()
    }

    fn record_validation(&mut self, expert: usize, loss: f32) -> Result<()> {
        let progress = &mut self.progress[expert];
        progress.validation.push((self.step, loss));
        if progress.best.is_none_or(|(_, best)| loss < best) {
            progress.best = Some((self.step, loss));
            // The former values go first: there is memory for one copy.
            self.best[expert] = None;
            self.best[expert] = Some(self.trainable.values(expert)?);
        }
        Ok(())
    }
}
