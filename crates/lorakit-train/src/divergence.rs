//! Detects failed training: a NaN loss or gradient, a loss far above that of the initial weights, or a vanished gradient.
//!
//! An expert has diverged if its loss exceeds both `ln(vocabulary)`, the loss of guessing, and `max_loss_jump` times the loss
//! of its initial weights on the same rows. Losses of different rows are not compared: some rows cost many times what others
//! do, whatever the weights. The training loss is that of the last [`monitored_steps`], the validation loss that of the last
//! step. Below the loss of guessing, where nearly all training is, the initial weights' loss is not computed.

use crate::error::Result;
use crate::job::Job;

/// Rows over which a training loss is averaged at least: one odd row shows nothing.
const MONITORED_ROWS: usize = 16;

/// Steps over which it is averaged at least: diverged training stays diverged.
const MONITORED_STEPS: usize = 2;

/// Steps with a zero gradient after which training is considered stuck.
const STUCK: usize = 3;

/// A loss below which the task is learned; a zero gradient is fine there.
const LEARNED: f64 = 1e-2;

/// Rows of a batch that a message lists.
const LISTED: usize = 8;

/// The limits that training is monitored by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DivergenceMonitor {
    /// Allowed ratio of the loss to that of the initial weights; 0 disables the limit.
    pub max_loss_jump: f64,
    /// The base's vocabulary size.
    pub vocabulary: usize,
}

/// Why an expert's training is stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Divergence {
    /// The loss or the gradient's norm is not finite.
    NonFinite { loss: f64, norm: f64 },
    /// The loss, averaged over some steps, is far above that of the initial weights.
    Jump(LossJump),
    /// The gradient is zero.
    Stuck { loss: f64 },
}

/// A loss far above that of the initial weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LossJump {
    /// The loss.
    pub loss: f64,
    /// What it may be at most.
    pub limit: f64,
}

/// The number of steps, up to the latest of an expert, over which its training loss is averaged.
pub(crate) fn monitored_steps(rows_per_step: usize) -> usize {
    MONITORED_ROWS.div_ceil(rows_per_step.max(1)).max(MONITORED_STEPS)
}

impl DivergenceMonitor {
    /// Checks a step by itself: `norms` are those of the steps before it.
    pub(crate) fn check(&self, loss: f64, norm: f64, norms: &[f32]) -> Option<Divergence> {
        if !loss.is_finite() || !norm.is_finite() {
            return Some(Divergence::NonFinite { loss, norm });
        }
        let stuck = norm == 0.0 && norms.iter().rev().take_while(|norm| **norm == 0.0).count() + 1 >= STUCK;
        (stuck && loss > LEARNED).then_some(Divergence::Stuck { loss })
    }

    /// Checks a loss against that of the initial weights on the same rows, which `initial` computes.
    ///
    /// # Errors
    /// If `initial` fails.
    pub(crate) fn check_jump(&self, loss: f64, initial: impl FnOnce() -> Result<f64>) -> Result<Option<LossJump>> {
        let guessing = (self.vocabulary as f64).ln();
        if self.max_loss_jump == 0.0 || loss <= guessing {
            return Ok(None);
        }
        let limit = (self.max_loss_jump * initial()?).max(guessing);
        Ok((loss > limit).then_some(LossJump { loss, limit }))
    }
}

impl Divergence {
    /// Describes the failure of a job at step `step`, whose `rows` are training rows by index, each with its share in the loss.
    pub(crate) fn describe(&self, step: usize, job: &Job, rows: &[(usize, f64)]) -> String {
        let (what, remedy) = match self {
            Self::NonFinite { loss, norm } => (
                format!("its loss was {loss} and its gradient norm {norm}"),
                "check the row, or try a lower learning_rate",
            ),
            Self::Jump(LossJump { loss, limit }) => (
                format!("its loss jumped to {loss:.3} (mean of the last steps; limit {limit:.3})"),
                "check the row, try a lower learning_rate, or raise max_loss_jump",
            ),
            // No row is the cause.
            Self::Stuck { loss } => {
                return format!(
                    "at step {step} its gradient was exactly zero, as at the {} before it, at a loss of {loss:.3}: \
                     it cannot learn any further; try a lower learning_rate",
                    STUCK - 1
                );
            }
        };
        format!("at step {step} {what}{}; {remedy}", describe_rows(job, rows))
    }
}

impl LossJump {
    /// Describes the jump of a validation loss after the last step.
    pub(crate) fn describe_validation(&self, step: usize) -> String {
        let Self { loss, limit } = self;
        format!(
            "after its last step, {step}, its validation loss was {loss:.3}, and the limit was {limit:.3}; try a lower \
             learning_rate, or raise max_loss_jump"
        )
    }
}

/// The rows of a step and the worst of them, as far as a job's rows have numbers.
fn describe_rows(job: &Job, rows: &[(usize, f64)]) -> String {
    let mut rows = rows.to_vec();
    rows.sort_unstable_by_key(|(row, _)| *row);
    let Some(names) = rows.iter().map(|(row, _)| job.row_name(*row)).collect::<Option<Vec<_>>>() else {
        return String::new();
    };
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let listed = names[..names.len().min(LISTED)].join(", ");
    match worst_row(&rows).and_then(|row| job.row_name(row)) {
        Some(worst) if rows.len() > 1 => format!(", on training rows {listed}{more}, row {worst} the worst"),
        _ => format!(", on training row {listed}"),
    }
}

/// The row with the highest loss; NaN counts as the highest.
fn worst_row(rows: &[(usize, f64)]) -> Option<usize> {
    let key = |loss: f64| if loss.is_nan() { f64::INFINITY } else { loss };
    rows.iter().max_by(|(a, x), (b, y)| key(*x).total_cmp(&key(*y)).then(b.cmp(a))).map(|(row, _)| *row)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_adapter::TaskRecord;

    const MONITOR: DivergenceMonitor = DivergenceMonitor { max_loss_jump: 2.0, vocabulary: 1000 };

    fn jump(loss: f64, initial: f64) -> Option<LossJump> {
        MONITOR.check_jump(loss, || Ok(initial)).unwrap()
    }

    #[test]
    fn a_jump_exceeds_guessing_and_the_initial_weights() {
        assert_eq!(jump(7.15, 2.6), Some(LossJump { loss: 7.15, limit: 1000f64.ln() }));
        assert_eq!(jump(6.8, 0.01), None, "no worse than guessing");
        assert_eq!(jump(7.95, 4.0), None, "not twice as high");
        assert_eq!(jump(8.05, 4.0), Some(LossJump { loss: 8.05, limit: 8.0 }));
        assert_eq!(jump(60.0, 60.0), None, "hard rows");
        let any = DivergenceMonitor { max_loss_jump: 0.0, ..MONITOR };
        assert_eq!(any.check_jump(90.0, || Ok(4.0)).unwrap(), None, "switched off");
        assert!(matches!(MONITOR.check(1.0, f64::INFINITY, &[]), Some(Divergence::NonFinite { .. })));
        assert!(jump(9.0, 4.0).unwrap().describe_validation(7).contains("validation loss was 9.000"));
    }

    #[test]
    fn a_loss_is_averaged_over_two_steps_and_sixteen_rows() {
        assert_eq!([1, 3, 4, 8, 16, 64].map(monitored_steps), [16, 6, 4, 2, 2, 2]);
    }

    #[test]
    fn a_zero_gradient_stops_an_expert_that_has_not_learned() {
        let of = |loss, norms: &[f32]| MONITOR.check(loss, 0.0, norms);
        assert_eq!(of(6.9, &[1.0, 0.0, 0.0]), Some(Divergence::Stuck { loss: 6.9 }));
        assert_eq!(of(6.9, &[0.0, 1.0, 0.0]), None, "not in a row");
        assert_eq!(of(1e-4, &[0.0; 9]), None, "the task is learned");
    }

    fn job(tasks: &[&str], task_rows: Vec<usize>) -> Job {
        let task = |name: &&str| TaskRecord { name: (*name).to_owned(), ..TaskRecord::default() };
        Job { tasks: tasks.iter().map(task).collect(), task_rows, ..Job::new("expert", Vec::new()) }
    }

    #[test]
    fn the_message_lists_the_rows_and_the_worst_one() {
        let rows = [(6, 0.5), (2, f64::NAN), (11, 3.0)];
        let divergence = MONITOR.check(f64::NAN, 1.0, &[]).unwrap();
        let one = job(&["one"], vec![20]);
        let message = divergence.describe(4, &one, &rows);
        assert!(message.contains("step 4") && message.contains("rows 3, 7, 12, row 3 the worst"), "{message}");
        let message = divergence.describe(4, &one, &rows[..1]);
        assert!(message.contains(", on training row 7; "), "{message}");
        let many: Vec<(usize, f64)> = (0..20).map(|row| (row, row as f64)).collect();
        assert!(describe_rows(&one, &many).contains("7, 8 and 12 more, row 20 the worst"));
    }

    #[test]
    fn rows_of_several_tasks_are_named_with_their_task_and_those_of_a_random_part_not_at_all() {
        let rows = [(6, 0.5), (2, 3.0)];
        let joint = job(&["one", "two"], vec![5, 3]);
        assert_eq!(describe_rows(&joint, &rows), ", on training rows 3 of `one`, 2 of `two`, row 3 of `one` the worst");
        // A random part may be all there is, and be of one task.
        for tasks in [&["one", "two"][..], &["one"]] {
            assert_eq!(describe_rows(&job(tasks, Vec::new()), &rows), "");
        }
    }
}
