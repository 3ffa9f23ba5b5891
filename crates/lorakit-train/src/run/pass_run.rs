//! One pass of a run: trained from its checkpoint on, and its experts stored in the library as they finish.

use crate::error::{Result, TrainError};
use crate::job::Job;
use crate::pass::Pass;
use crate::pass::pass_context::PassContext;
use crate::run::loss_history::LossHistory;
use crate::run::pass_checkpoint;
use crate::run::run_folder::{create_folder, remove_if_exists};
use crate::run::run_log::RunLog;
use crate::run::run_summary::RunSummary;
use crate::run::train_event::{OnEvent, TrainEvent};
use crate::run::trainer::{FingerprintedJobs, Trainer, TrainingRun};
use lorakit_adapter::{ExpertRecord, Library, LibraryLock, OpaqueRecord};
use lorakit_model::Base;
use std::path::Path;
use std::sync::atomic::Ordering;

/// One pass of a run in training.
pub(crate) struct PassRun<'r, 's> {
    pub(crate) run: &'r TrainingRun<'r>,
    /// The base of the pass: for full fine-tuning the one that trains.
    pub(crate) base: &'r Base,
    /// Its index among the run's.
    pub(crate) index: usize,
    /// The lock of the run's part, if the run is divided.
    pub(crate) lock: Option<&'r LibraryLock>,
    /// The log of the pass before, if there was one.
    pub(crate) log: &'s mut Option<RunLog>,
    pub(crate) on_event: &'s mut OnEvent<'s>,
    pub(crate) summary: &'s mut RunSummary,
}

impl PassRun<'_, '_> {
    /// Trains the pass to its end, or until it is stopped.
    pub(crate) fn train(mut self) -> Result<()> {
        let run = self.run;
        let jobs = run.pass_jobs(self.index)?;
        let parts = run.manifest.parts;
        let folder = run.folder.of_pass(self.index, parts)?;
        create_folder(&folder)?;
        while_held(self.lock, || run.folder.adopt_checkpoint(self.index, parts))?;
        let path = run.folder.checkpoint(self.index, parts)?;
        let mut pass = self.resume(&jobs, &path)?;
        (self.on_event)(TrainEvent::Pass { index: self.index, done: pass.steps_done(), steps: pass.steps() });
        let last = self.log.take();
        let mut log = while_held(self.lock, || RunLog::of_next_pass(last, &folder, self.index, pass.steps_done()))?;
        self.save_finished(&pass, (0..jobs.len()).collect())?;
        while pass.is_running() {
            if run.trainer.stop.load(Ordering::Relaxed) {
                self.save_checkpoint(&pass, &path)?;
                self.summary.stopped = true;
                return Ok(());
            }
            let step = pass.step()?;
            log.write(self.index, &step, &pass)?;
            (self.on_event)(TrainEvent::Step { step: &step, experts: &run.manifest.passes[self.index] });
            // If an expert ends while others continue or end too, the checkpoint comes first: if the process is killed
            // after it, the others find the same pass again.
            let shared_end = !step.ended.is_empty() && (pass.is_running() || step.ended.len() > 1);
            let every = run.trainer.config.save_steps.steps(pass.steps());
            let due = every.is_some_and(|every| step.step.is_multiple_of(every));
            let checkpoint_first = shared_end || (due && pass.is_running());
            // On a full disk there may be room for the experts where there is none for the checkpoint, and the other way
            // round: what can be kept is kept.
            let saved = if checkpoint_first { self.save_checkpoint(&pass, &path) } else { Ok(()) };
            let stored = self.save_finished(&pass, step.ended);
            if stored.is_err() && !checkpoint_first {
                // The experts of this step are stored from it by the next run. Why it fails, they have said.
                let _ = self.save_checkpoint(&pass, &path);
            }
            saved.and(stored)?;
        }
        *self.log = Some(log);
        // The checkpoint of failed experts keeps the reasons for the next run.
        match pass.progress().iter().any(|progress| progress.failure.is_some()) {
            true => self.save_checkpoint(&pass, &path),
            false => remove_if_exists(&path),
        }
    }

    /// Writes the checkpoint, unless another process has taken the part over.
    fn save_checkpoint(&self, pass: &Pass, path: &Path) -> Result<()> {
        let ensure_held = || -> Result<()> {
            self.run.trainer.library.ensure_held()?;
            Ok(self.lock.map_or(Ok(()), LibraryLock::ensure_held)?)
        };
        while_held(self.lock, || pass_checkpoint::save(pass, path, &ensure_held))
    }

    /// The pass at its checkpoint, or at its start. Finished experts take part again, since the bits of the others depend
    /// on them.
    fn resume<'j>(&self, jobs: &'j [Job], path: &Path) -> Result<Pass<'j>>
    where
        Self: 'j,
    {
        let Trainer { config, seed, restart, .. } = self.run.trainer;
        let context = PassContext { base: self.base, config, seed, batch_tokens: self.run.manifest.batch_tokens };
        let mut pass = self.run.target.pass(context, jobs)?.with_initial_base(self.run.trainer.base);
        if path.exists() && !(restart && pass_checkpoint::has_failures(path)?) {
            pass_checkpoint::load(&mut pass, path)?;
        }
        Ok(pass)
    }

    /// Stores finished experts in the library; experts that it has already stay unchanged.
    fn save_finished(&mut self, pass: &Pass, ended: Vec<usize>) -> Result<()> {
        let trainer = self.run.trainer;
        for expert in ended {
            let (job, progress) = (&pass.jobs()[expert], &pass.progress()[expert]);
            if self.summary.finished.contains(&job.name) || self.summary.trained.contains(&job.name) {
                continue;
            }
            if let Some(reason) = &progress.failure {
                if !self.summary.failed.iter().any(|(name, _)| *name == job.name) {
                    self.summary.failed.push((job.name.clone(), reason.clone()));
                    (self.on_event)(TrainEvent::Failed { expert: &job.name, reason });
                }
                continue;
            }
            if pass.steps_done() < job.steps(trainer.config) {
                continue;
            }
            self.store(pass, expert)?;
            self.summary.trained.push(job.name.clone());
            (self.on_event)(TrainEvent::Finished { expert: &job.name, progress });
        }
        Ok(())
    }

    /// Writes the result of a finished expert into the library.
    fn store(&self, pass: &Pass, expert: usize) -> Result<()> {
        let (library, record) = (self.run.trainer.library, self.record(pass, expert)?);
        let save = |library: &Library| self.run.target.save(library, pass, expert, &record);
        let Some(part) = self.lock else { return save(library) };
        // Who has lost the part does not wait for the library's lock, which its successor may hold for long.
        part.ensure_held()?;
        let change = library.lock_for_change()?;
        while_held(Some(part), || while_held(Some(&change), || save(&library.guarded_by(&[part, &change]))))
    }

    /// The record of a finished expert.
    fn record(&self, pass: &Pass, expert: usize) -> Result<ExpertRecord> {
        let (job, progress) = (&pass.jobs()[expert], &pass.progress()[expert]);
        let FingerprintedJobs { jobs, fingerprints } = &self.run.jobs;
        let fingerprint = jobs.iter().zip(fingerprints).find(|(other, _)| other.name == job.name).map(|(_, own)| own);
        let fingerprint = fingerprint.ok_or_else(|| TrainError::UnknownExpert {
            folder: self.run.folder.path.clone(),
            name: job.name.clone(),
        })?;
        let seed = self.run.manifest.seed;
        Ok(ExpertRecord {
            tasks: job.tasks.clone(),
            seen: job.init.as_ref().map_or_else(Vec::new, |init| init.seen.clone()),
            settings_sha256: fingerprint.sha256(),
            settings: OpaqueRecord::new(fingerprint)?,
            seed,
            initial_seed: self.run.target.initial_seed(job, seed),
            losses: OpaqueRecord::new(&LossHistory::from(progress))?,
            tokens: progress.tokens,
            base_fingerprint: Some(self.base.identity().fingerprint.clone()),
            base_form: self.base.identity().form.clone(),
            sha256: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }
}

/// Makes a change unless another process has taken the lock over, if there is one. A process that is suspended amid a change
/// may find what it wrote removed by its successor: then that is the reason, not the failed write.
pub(crate) fn while_held<T>(lock: Option<&LibraryLock>, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(lock) = lock else { return change() };
    lock.ensure_held()?;
    change().map_err(|error| lock.ensure_held().err().map_or(error, TrainError::from))
}
