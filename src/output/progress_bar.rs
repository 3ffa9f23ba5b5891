//! Progress bars on stderr. Nothing is drawn with `-q`, or if stderr is not a terminal.

use crate::output::console::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use lorakit_fit::pluralize;
use lorakit_train::{StepOutput, TrainEvent};
use std::fmt::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A progress bar for downloading a file, in bytes.
pub fn download_bar(shown: bool, file: &str) -> ProgressBar {
    const LONGEST_NAME: usize = 30;
    if !shown {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg} [{elapsed_precise}] [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})",
    );
    let name = match file.char_indices().rev().nth(LONGEST_NAME - 1) {
        Some((start, _)) if start > 0 => format!("..{}", &file[start..]),
        _ => file.to_owned(),
    };
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(name)
}

/// A bar of `length` steps.
pub fn bar(output: &Output, length: u64, name: impl Into<String>) -> ProgressBar {
    bar_from(output, 0..length, name)
}

/// A bar of the steps up to `steps.end`, of which those before `steps.start` were done earlier.
fn bar_from(output: &Output, steps: Range<u64>, name: impl Into<String>) -> ProgressBar {
    let target = if output.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    // The template is a constant; a plain bar is a fallback.
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} {left}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    // By the mean time of the steps so far, which is true from the first one on; indicatif's own estimate starts at 0.
    let (since, start) = (Instant::now(), steps.start);
    let left = move |state: &ProgressState, text: &mut dyn Write| {
        let length = state.len().unwrap_or_default();
        if let Some(left) =
            time_left(since.elapsed(), state.pos().saturating_sub(start), length.saturating_sub(state.pos()))
        {
            let _ = write!(text, "{} left", duration(left));
        }
    };
    ProgressBar::with_draw_target(Some(steps.end), target)
        .with_style(style.with_key("left", left).progress_chars("━╸ "))
        .with_prefix(name.into())
        .with_position(start)
}

/// The time for `left` more steps if they take as long as those that are done; none before the first.
fn time_left(elapsed: Duration, done: u64, left: u64) -> Option<Duration> {
    (done > 0).then(|| Duration::from_secs_f64(elapsed.as_secs_f64() / done as f64 * left as f64))
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
            TrainEvent::Planned { passes, finished, estimate } => {
                self.passes = passes.len();
                let experts: usize = passes.iter().map(Vec::len).sum();
                if !finished.is_empty() {
                    self.output.status(format!("already finished: {}", finished.join(", ")));
                }
                if experts > 0 {
                    let memory = crate::output::text_table::bytes(estimate.total());
                    self.output.status(format!(
                        "training {} in passes of up to {}; about {memory} of memory",
                        pluralize(experts, "expert"),
                        passes[0].len()
                    ));
                }
            }
            TrainEvent::Warning { text } => self.bar.suspend(|| self.output.warn(text)),
            TrainEvent::Pass { index, done, steps } => {
                let steps = done as u64..steps as u64;
                self.bar = bar_from(&self.output, steps, format!("pass {}/{}", index + 1, self.passes));
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
            TrainEvent::Failed { expert, reason } => {
                self.bar.suspend(|| self.output.warn(format!("{expert} stopped: {reason}")))
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
    fn the_first_step_tells_how_long_the_others_take() {
        let second = Duration::from_secs(1);
        assert_eq!(time_left(second, 0, 40), None);
        assert_eq!(time_left(second, 1, 39), Some(39 * second));
        assert_eq!(time_left(10 * second, 4, 2), Some(5 * second));
    }

    #[test]
    fn durations_read_like_a_clock() {
        assert_eq!(duration(Duration::from_secs(62)), "1:02");
        assert_eq!(duration(Duration::from_secs(3723)), "1:02:03");
    }
}
