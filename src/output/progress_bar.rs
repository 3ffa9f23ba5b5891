//! Progress bars on stderr. Nothing is drawn with `-q`, or if stderr is not a terminal.

use crate::output::console::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use lorakit_train::{StepOutput, TrainEvent};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// A bar of `length` steps.
pub fn bar(output: &Output, length: u64, name: impl Into<String>) -> ProgressBar {
    let target = if output.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    // The template is a constant; a plain bar is a fallback.
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} {left}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let left = |state: &ProgressState, text: &mut dyn Write| {
        let _ = write!(text, "{} left", duration(state.eta()));
    };
    ProgressBar::with_draw_target(Some(length), target)
        .with_style(style.with_key("left", left).progress_chars("━╸ "))
        .with_prefix(name.into())
}

/// `1:02:03`, or `2:03` under an hour.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Progress of a training run: a bar per pass, with loss and speed.
pub struct TrainingBars {
    output: Output,
    passes: usize,
    bar: ProgressBar,
    since: Instant,
    tokens: usize,
}

impl TrainingBars {
    /// Bars for a run that has not started.
    pub fn new(output: Output) -> Self {
        Self { output, passes: 0, bar: ProgressBar::hidden(), since: Instant::now(), tokens: 0 }
    }

    /// Shows a training event.
    pub fn on_event(&mut self, event: TrainEvent) {
        match event {
            TrainEvent::Planned { passes, kept, estimate } => {
                self.passes = passes.len();
                let experts: usize = passes.iter().map(Vec::len).sum();
                if !kept.is_empty() {
                    self.output.status(format!("already finished: {}", kept.join(", ")));
                }
                if experts > 0 {
                    let memory = crate::output::text_table::bytes(estimate.total());
                    self.output.status(format!(
                        "training {experts} experts in passes of up to {}; about {memory} of memory",
                        passes[0].len()
                    ));
                }
            }
            TrainEvent::Pass { index, done, steps } => {
                self.bar = bar(&self.output, steps as u64, format!("pass {}/{}", index + 1, self.passes))
                    .with_position(done as u64);
                self.bar.reset_eta();
                (self.since, self.tokens) = (Instant::now(), 0);
                if done > 0 {
                    self.output.status(format!("pass {} resumes after step {done}", index + 1));
                }
            }
            TrainEvent::Step { step, experts } => self.step(step, experts),
            TrainEvent::Finished { expert, progress } => {
                let best = progress
                    .best
                    .map_or(String::new(), |(step, loss)| format!(", best validation loss {loss:.4} at step {step}"));
                self.detail(format!("{expert}: finished{best}"));
            }
            TrainEvent::Failed { expert, why } => {
                self.bar.suspend(|| self.output.warn(format!("{expert} stopped: {why}")))
            }
        }
    }

    fn step(&mut self, step: &StepOutput, experts: &[String]) {
        self.tokens += step.tokens;
        let losses: Vec<f32> = step.losses.iter().flatten().copied().collect();
        let loss = losses.iter().sum::<f32>() / losses.len().max(1) as f32;
        let speed = self.tokens as f64 / self.since.elapsed().as_secs_f64().max(1e-3);
        self.bar.set_position(step.step as u64);
        self.bar.set_message(format!("loss {loss:.3}, {speed:.0} tokens/s"));
        for (expert, loss) in &step.validated {
            self.detail(format!("{}: validation loss {loss:.4} after step {}", experts[*expert], step.step));
        }
    }

    fn detail(&self, text: String) {
        self.bar.suspend(|| self.output.detail(text));
    }
}

impl Drop for TrainingBars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_a_clock() {
        assert_eq!(duration(Duration::from_secs(62)), "1:02");
        assert_eq!(duration(Duration::from_secs(3723)), "1:02:03");
    }
}
