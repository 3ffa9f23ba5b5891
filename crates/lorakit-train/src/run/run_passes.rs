//! Trains the passes of a run, or of one part of it, under its locks.

use crate::error::{Result, TrainError};
use crate::job::Job;
use crate::run::device_memory::MemoryEstimate;
use crate::run::memory_estimate;
use crate::run::pass_run::{PassRun, while_held};
use crate::run::run_folder::RunFolder;
use crate::run::run_part::vector_instructions;
use crate::run::run_summary::RunSummary;
use crate::run::train_event::{OnEvent, TrainEvent};
use crate::run::trainer::{Trainer, TrainingRun};
use crate::run::training_target::{FullFineTuning, SkillTraining, TrainingTarget};
use lorakit_adapter::{LibraryLock, ensure_expert_name};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a process waits for a lock before it says so.
const QUIET_WAIT: Duration = Duration::from_secs(1);

impl Trainer<'_> {
    /// Trains an expert for each job. Experts that the library has with the same settings and rows are kept.
    ///
    /// # Errors
    /// If an expert exists with other settings, memory is insufficient, or training fails. A diverged expert is no error:
    /// [`RunSummary::failed`] names it.
    pub fn train_experts(&self, jobs: Vec<Job>, on_event: &mut OnEvent) -> Result<RunSummary> {
        if jobs.is_empty() {
            return Err(TrainError::NoJobs);
        }
        self.train(&TrainingTarget::Experts, jobs, on_event)
    }

    /// Trains all weights of the base on the rows of `job`, and stores them as the library's model of the job's name. A
    /// model that is there with the same settings and rows is kept. [`Trainer::base`] itself does not change.
    pub fn train_model(&self, model: &FullFineTuning, job: Job, on_event: &mut OnEvent) -> Result<RunSummary> {
        self.train(&TrainingTarget::Model(model), vec![job], on_event)
    }

    /// Trains skills and their routing on the rows of `job`, and stores them as the experts `NAME_0`, `NAME_1`, ... and
    /// the routing NAME, where NAME is the job's. What is there with the same settings and rows is kept.
    pub fn train_skills(&self, skills: &SkillTraining, job: Job, on_event: &mut OnEvent) -> Result<RunSummary> {
        self.train(&TrainingTarget::Skills(skills), vec![job], on_event)
    }

    fn train(&self, target: &TrainingTarget, jobs: Vec<Job>, on_event: &mut OnEvent) -> Result<RunSummary> {
        self.config.validate()?;
        for job in &jobs {
            // Before hours of training, not after them.
            ensure_expert_name(&job.name)?;
            if job.train.is_empty() {
                return Err(TrainError::NoRows { noun: target.noun(), name: job.name.clone() });
            }
        }
        let jobs = self.with_fingerprints(target, jobs);
        let folder = RunFolder::new(self.library, &jobs.fingerprints)?;
        let Some(mut locks) = self.lock_part(&folder, on_event)? else {
            return Ok(RunSummary { stopped: true, ..RunSummary::default() });
        };
        let mut summary = RunSummary { finished: self.finished(target, &jobs)?, ..RunSummary::default() };
        folder.remove_stale(&summary.finished, self.part)?;
        if !summary.finished.is_empty() {
            // A process that was killed may have added them without recording the base.
            self.library.record_base()?;
        }
        if summary.finished.len() == jobs.jobs.len() {
            let estimate = MemoryEstimate::default();
            on_event(TrainEvent::Planned { passes: &[], finished: &summary.finished, estimate });
            return Ok(summary);
        }
        let run = TrainingRun::plan(*self, target, jobs, folder, &summary.finished)?;
        while_held(locks.library.as_ref(), || run.write_manifest())?;
        // From here on other parts may change the library.
        locks.library = None;
        summary.folder = run.folder.path.clone();
        run.train(&locks, on_event, &mut summary)?;
        Ok(summary)
    }

    /// Locks the library and the part, if the run is divided; `None` if it is stopped while it waits.
    fn lock_part(&self, folder: &RunFolder, on_event: &mut OnEvent) -> Result<Option<PartLocks>> {
        let Some(part) = self.part else { return Ok(Some(PartLocks::default())) };
        if let Some(manifest) = folder.manifest()? {
            // Before there is a folder for a part that the run does not have.
            folder.check_part(&manifest, part)?;
        }
        let (since, mut has_warned) = (Instant::now(), false);
        let mut keep_waiting = || {
            if !has_warned && since.elapsed() > QUIET_WAIT {
                let text = format!("another process trains part {part} or changes the library; waiting until it ends");
                on_event(TrainEvent::Warning { text: &text });
                has_warned = true;
            }
            !self.stop.load(Ordering::Relaxed)
        };
        let locks = self.library.lock_part(&folder.id, part.index, &mut keep_waiting)?;
        Ok(locks.map(|(library, part)| PartLocks { library: Some(library), part: Some(part) }))
    }
}

/// The locks of a process that trains a part of a run; none for one that trains all of it.
#[derive(Default)]
struct PartLocks {
    library: Option<LibraryLock>,
    part: Option<LibraryLock>,
}

impl TrainingRun<'_> {
    /// Trains all unfinished passes of the part, until the run is stopped.
    fn train(&self, locks: &PartLocks, on_event: &mut OnEvent, summary: &mut RunSummary) -> Result<()> {
        let Trainer { base, config, .. } = self.trainer;
        self.warn_of_part(on_event);
        let own = |pass: &usize| self.trainer.part.is_none_or(|part| part.has(*pass));
        let largest = (0..self.manifest.passes.len()).filter(own).map(|pass| self.manifest.passes[pass].len()).max();
        let estimate = self.target.memory(base, &self.jobs.jobs, largest.unwrap_or(1), config)?;
        memory_estimate::check_fits(base, &estimate)?;
        summary.estimate = estimate;
        let mut unfinished = self.unfinished_passes(&summary.finished);
        let others = unfinished.extract_if(.., |(pass, _)| !own(pass));
        summary.elsewhere = others.flat_map(|(_, names)| names).collect();
        let passes: Vec<Vec<String>> = unfinished.iter().map(|(_, names)| names.clone()).collect();
        on_event(TrainEvent::Planned { passes: &passes, finished: &summary.finished, estimate });
        let trainable = match self.target {
            TrainingTarget::Model(model) if !unfinished.is_empty() => Some((model.open)()?),
            _ => None,
        };
        let base = trainable.as_ref().unwrap_or(base);
        let mut log = None;
        for (number, (index, _)) in unfinished.into_iter().enumerate() {
            let mut on_event = |event: TrainEvent| on_event(event.with_pass_index(number));
            let lock = locks.part.as_ref();
            PassRun { run: self, base, index, lock, log: &mut log, on_event: &mut on_event, summary }.train()?;
            if summary.stopped {
                break;
            }
        }
        if summary.elsewhere.is_empty() {
            return Ok(());
        }
        // Other parts may have finished some since.
        let finished: HashSet<String> = self.trainer.same_results(self.target, &self.jobs)?.into_iter().collect();
        let is_missing = |name: &&String| !finished.contains(*name);
        summary.missing_elsewhere = summary.elsewhere.iter().filter(is_missing).cloned().collect();
        Ok(())
    }

    /// Warns of a part without passes, and of one on another kind of machine than the first.
    fn warn_of_part(&self, on_event: &mut OnEvent) {
        let Some(part) = self.trainer.part else { return };
        let (passes, here) = (self.manifest.passes.len(), vector_instructions());
        if part.index >= passes {
            let passes = if passes == 1 { "1 pass".to_owned() } else { format!("{passes} passes") };
            let text = format!(
                "part {part} has nothing to train, since the run has {passes}; a lower experts_per_pass makes more"
            );
            on_event(TrainEvent::Warning { text: &text });
        }
        if let Some(first) = self.manifest.vector_instructions.as_ref().filter(|first| **first != here) {
            let text = format!(
                "the first part ran with {first} vectors, this one has {here}: experts will differ in \
                 their last bits from those of one machine"
            );
            on_event(TrainEvent::Warning { text: &text });
        }
    }
}
