//! Whether the experts of a pass diverge, by the losses that their initial weights have on the same rows.

use crate::divergence::{Divergence, DivergenceMonitor, monitored_steps};
use crate::error::Result;
use crate::initial_weights::InitialWeights;
use crate::job::Job;
use crate::pass::pass_context::PassContext;
use crate::run::expert_progress::ExpertProgress;
use lorakit_model::Base;
use std::collections::BTreeMap;

/// Detects experts that diverge.
pub(super) struct DivergenceCheck<'a> {
    context: PassContext<'a>,
    jobs: &'a [Job],
    /// The base as it was before training; None if all its weights are trained and the caller gives no other.
    initial_base: Option<&'a Base>,
    /// Each expert's losses under its initial weights by step, counted from zero, as far as they have been compared.
    initial_losses: Vec<BTreeMap<usize, f64>>,
}

impl<'a> DivergenceCheck<'a> {
    pub(super) fn new(context: PassContext<'a>, jobs: &'a [Job], initial_base: Option<&'a Base>) -> Self {
        Self { context, jobs, initial_base, initial_losses: vec![BTreeMap::new(); jobs.len()] }
    }

    /// Compares with the losses of another base.
    pub(super) fn with_initial_base(self, base: &'a Base) -> Self {
        Self { initial_base: Some(base), ..self }
    }

    fn monitor(&self) -> DivergenceMonitor {
        let PassContext { base, config, .. } = self.context;
        DivergenceMonitor { max_loss_jump: config.max_loss_jump, vocabulary: base.config().vocabulary }
    }

    /// The initial weights of an expert, as far as they are still there.
    fn initial_weights(&self, expert: usize) -> Option<InitialWeights<'a>> {
        let PassContext { config, seed, batch_tokens, .. } = self.context;
        Some(InitialWeights { base: self.initial_base?, job: &self.jobs[expert], config, seed, batch_tokens })
    }

    /// Why an expert has diverged at a step, counted from zero, if it has; `progress` is that before the step.
    pub(super) fn check_step(
        &mut self,
        (expert, step): (usize, usize),
        (loss, norm): (f64, f64),
        progress: &ExpertProgress,
    ) -> Result<Option<Divergence>> {
        let monitor = self.monitor();
        let found = monitor.check(loss, norm, &progress.norms);
        let Some(initial) = self.initial_weights(expert).filter(|_| found.is_none()) else { return Ok(found) };
        let rows_per_step = self.context.config.rows_per_step().min(self.jobs[expert].train.len());
        let first = (step + 1).saturating_sub(monitored_steps(rows_per_step));
        let count = (step + 1 - first) as f64;
        let before: f64 = progress.losses[first..].iter().map(|loss| f64::from(*loss)).sum();
        let known = &mut self.initial_losses[expert];
        let jump = monitor.check_jump((before + loss) / count, || {
            let mut sum = 0.0;
            for step in first..=step {
                let loss = match known.get(&step) {
                    Some(loss) => *loss,
                    None => initial.step_loss(step)?,
                };
                known.insert(step, loss);
                sum += loss;
            }
            Ok(sum / count)
        })?;
        Ok(jump.map(Divergence::Jump))
    }

    /// Why an expert that was validated after its last `step` has diverged, if it has.
    pub(super) fn check_validation(
        &self,
        expert: usize,
        step: usize,
        progress: &ExpertProgress,
    ) -> Result<Option<String>> {
        let Some(initial) = self.initial_weights(expert) else { return Ok(None) };
        let validated = progress.validation.last().filter(|(validated, _)| *validated == step);
        let Some((_, loss)) = validated.filter(|_| step == self.jobs[expert].steps(self.context.config)) else {
            return Ok(None);
        };
        let jump = self.monitor().check_jump(f64::from(*loss), || initial.validation_loss())?;
        Ok(jump.map(|jump| jump.describe_validation(step)))
    }
}
