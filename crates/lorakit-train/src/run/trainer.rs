//! Trains jobs into a library: divides experts into passes, and stores each when it is finished.
//!
//! The jobs of a run (experts with their settings, rows, seed and base) determine its folder `runs/ID`. The same command
//! finds the folder again, continues from the checkpoint of an unfinished pass, and leaves finished experts alone. How
//! experts are divided into passes is decided when the folder is created, and kept: the last bits of an expert depend on
//! the experts that share its pass, and an interrupted run must end with the same bytes as one that was not.
//!
//! Several processes may each train a part of the passes ([`RunPart`]). The first fixes the passes and the number of parts;
//! then each holds its part's lock, and the library's only while it stores an expert.

use crate::error::{Result, TrainError};
use crate::job::Job;
use crate::pass::{Pass, PassContext};
use crate::run::device_memory::MemoryEstimate;
use crate::run::job_fingerprint::{JobFingerprint, differences};
use crate::run::loss_history::LossHistory;
use crate::run::memory_estimate;
use crate::run::pass_checkpoint;
use crate::run::run_folder::{RunFolder, create_folder, remove_if_exists};
use crate::run::run_log::RunLog;
use crate::run::run_manifest::RunManifest;
use crate::run::run_part::{RunPart, vector_instructions};
use crate::run::train_event::TrainEvent;
use crate::run::training_target::{FullFineTuning, SkillTraining, TrainingTarget};
use crate::train_config::TrainConfig;
use lorakit_adapter::{ExpertRecord, Library, LibraryLock, OpaqueRecord, ensure_expert_name};
use lorakit_model::Base;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Trains over a base into a library.
#[derive(Clone, Copy)]
pub struct Trainer<'a> {
    /// The frozen base.
    pub base: &'a Base,
    /// Where results are stored.
    pub library: &'a Library,
    /// How jobs are trained.
    pub config: &'a TrainConfig,
    /// The seed of initial values, row orders and dropout.
    pub seed: u64,
    /// Whether results with other settings are replaced, and failed experts are trained again.
    pub restart: bool,
    /// The part of the run to train; none: all of it, by a caller that holds the library's lock. With a part the caller
    /// holds none.
    pub part: Option<RunPart>,
    /// Set by the caller to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// The outcome of a run.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    /// Experts trained now.
    pub trained: Vec<String>,
    /// Experts that were finished before.
    pub kept: Vec<String>,
    /// Experts that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// Experts that other parts of the run train, and that were not finished when this one ended.
    pub missing_elsewhere: Vec<String>,
    /// Experts that other parts of the run train.
    pub elsewhere: Vec<String>,
    /// The run's folder; empty if there was nothing to train.
    pub folder: PathBuf,
    /// The memory of its largest pass, as estimated; zero if there was nothing to train.
    pub estimate: MemoryEstimate,
}

/// A progress callback.
type OnEvent<'e> = dyn FnMut(TrainEvent) + 'e;

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
        let mut summary = RunSummary { kept: self.finished(target, &jobs)?, ..RunSummary::default() };
        folder.remove_stale(&summary.kept, self.part)?;
        if !summary.kept.is_empty() {
            // A process that was killed may have added them without recording the base.
            self.library.record_base()?;
        }
        if summary.kept.len() == jobs.jobs.len() {
            let estimate = MemoryEstimate::default();
            on_event(TrainEvent::Planned { passes: &[], kept: &summary.kept, estimate });
            return Ok(summary);
        }
        let run = TrainingRun::plan(*self, target, jobs, folder, &summary.kept)?;
        while_held(locks.library.as_ref(), || run.write_manifest())?;
        // From here on other parts may change the library.
        locks.library = None;
        summary.folder = run.folder.path.clone();
        run.train(&locks, on_event, &mut summary)?;
        Ok(summary)
    }

    /// The jobs, each with what determines its weights.
    pub(crate) fn with_fingerprints(&self, target: &TrainingTarget, jobs: Vec<Job>) -> FingerprintedJobs {
        let fields = target.fingerprint_fields(self.config);
        let fingerprint = |job: &Job| JobFingerprint::new(job, self.base, fields.clone(), self.seed);
        FingerprintedJobs { fingerprints: jobs.iter().map(fingerprint).collect(), jobs }
    }

    /// Locks the library and the part, if the run is divided; `None` if it is stopped while it waits.
    fn lock_part(&self, folder: &RunFolder, on_event: &mut OnEvent) -> Result<Option<PartLocks>> {
        let Some(part) = self.part else { return Ok(Some(PartLocks::default())) };
        if let Some(manifest) = folder.manifest()? {
            // Before there is a folder for a part that the run does not have.
            folder.check_part(&manifest, part)?;
        }
        let (since, mut told) = (Instant::now(), false);
        let mut keep_waiting = || {
            if !told && since.elapsed() > QUIET_WAIT {
                let text = format!("another process trains part {part} or changes the library; waiting until it ends");
                on_event(TrainEvent::Warning { text: &text });
                told = true;
            }
            !self.stop.load(Ordering::Relaxed)
        };
        let locks = self.library.lock_part(&folder.id, part.index, &mut keep_waiting)?;
        Ok(locks.map(|(library, part)| PartLocks { library: Some(library), part: Some(part) }))
    }

    /// The names of the jobs whose results the library has with the same fingerprint.
    pub(crate) fn finished(&self, target: &TrainingTarget, jobs: &FingerprintedJobs) -> Result<Vec<String>> {
        let mut kept = Vec::new();
        for (job, fingerprint) in jobs.jobs.iter().zip(&jobs.fingerprints) {
            if !target.is_in(self.library, &job.name) {
                continue;
            }
            let record = target.record(self.library, &job.name)?;
            if record.as_ref().is_some_and(|record| record.settings_sha256 == fingerprint.sha256()) {
                kept.push(job.name.clone());
            } else if !self.restart {
                let difference = match record {
                    Some(record) => differences(&record.settings.read()?, &fingerprint.to_value()),
                    None => "without a record of its training".to_owned(),
                };
                return Err(TrainError::OtherSettings { noun: target.noun(), name: job.name.clone(), difference });
            }
        }
        if !self.restart {
            for (job, fingerprint) in jobs.jobs.iter().zip(&jobs.fingerprints) {
                target.check_free(self.library, &job.name, &fingerprint.sha256())?;
            }
        }
        Ok(kept)
    }
}

/// Jobs, each with what determines its weights.
pub(crate) struct FingerprintedJobs {
    pub(crate) jobs: Vec<Job>,
    pub(crate) fingerprints: Vec<JobFingerprint>,
}

/// The locks of a process that trains a part of a run; none for one that trains all of it.
#[derive(Default)]
struct PartLocks {
    library: Option<LibraryLock>,
    part: Option<LibraryLock>,
}

/// A run with its folder.
pub(crate) struct TrainingRun<'a> {
    pub(crate) trainer: Trainer<'a>,
    pub(crate) target: &'a TrainingTarget<'a>,
    pub(crate) jobs: FingerprintedJobs,
    folder: RunFolder<'a>,
    pub(crate) manifest: RunManifest,
    /// Whether the manifest differs from the run.json.
    is_changed: bool,
}

impl<'a> TrainingRun<'a> {
    /// The run as its folder has it, or, of a new one, with the experts divided into passes. Nothing is written.
    pub(crate) fn plan(
        trainer: Trainer<'a>,
        target: &'a TrainingTarget,
        jobs: FingerprintedJobs,
        folder: RunFolder<'a>,
        kept: &[String],
    ) -> Result<Self> {
        // Finished experts are part of the folder's name: the same command must find it at any time.
        let (mut manifest, mut is_changed) = match folder.manifest()? {
            Some(manifest) => (manifest, false),
            None => (new_manifest(&trainer, target, &jobs)?, true),
        };
        if let Some(part) = trainer.part {
            folder.check_part(&manifest, part)?;
            if manifest.parts.is_none() {
                manifest.parts = Some(part.count);
                manifest.vector_instructions = Some(vector_instructions());
                is_changed = true;
            }
        }
        // All experts of a new run; later those that were removed from the library since.
        let known: HashSet<&String> = manifest.passes.iter().flatten().chain(kept).collect();
        let missing: Vec<Job> = jobs.jobs.iter().filter(|job| !known.contains(&job.name)).cloned().collect();
        if !missing.is_empty() {
            let per_pass = target.jobs_per_pass(trainer.base, &missing, trainer.config)?;
            let names: Vec<String> = missing.into_iter().map(|job| job.name).collect();
            manifest.passes.extend(names.chunks(per_pass).map(<[String]>::to_vec));
            is_changed = true;
        }
        Ok(Self { trainer, target, jobs, folder, manifest, is_changed })
    }

    /// Creates the run's folder, and writes its run.json, where they are missing or out of date.
    fn write_manifest(&self) -> Result<()> {
        if !self.is_changed {
            return Ok(());
        }
        create_folder(&self.folder.path)?;
        self.manifest.write(&self.folder.manifest_path())
    }

    /// Trains all unfinished passes of the part, until the run is stopped.
    fn train(&self, locks: &PartLocks, on_event: &mut OnEvent, summary: &mut RunSummary) -> Result<()> {
        let Trainer { base, config, .. } = self.trainer;
        self.warn_of_part(on_event);
        let own = |pass: &usize| self.trainer.part.is_none_or(|part| part.has(*pass));
        let largest = (0..self.manifest.passes.len()).filter(own).map(|pass| self.manifest.passes[pass].len()).max();
        let estimate = self.target.memory(base, &self.jobs.jobs, largest.unwrap_or(1), config)?;
        memory_estimate::check_fits(base, &estimate)?;
        summary.estimate = estimate;
        let mut unfinished = self.unfinished_passes(&summary.kept);
        let others = unfinished.extract_if(.., |(pass, _)| !own(pass));
        summary.elsewhere = others.flat_map(|(_, names)| names).collect();
        let passes: Vec<Vec<String>> = unfinished.iter().map(|(_, names)| names.clone()).collect();
        on_event(TrainEvent::Planned { passes: &passes, kept: &summary.kept, estimate });
        let trainable = match self.target {
            TrainingTarget::Model(model) if !unfinished.is_empty() => Some((model.open)()?),
            _ => None,
        };
        let base = trainable.as_ref().unwrap_or(base);
        for (number, (index, _)) in unfinished.into_iter().enumerate() {
            let mut on_event = |event: TrainEvent| on_event(event.with_pass_index(number));
            let lock = locks.part.as_ref();
            PassRun { run: self, base, index, lock, on_event: &mut on_event, summary }.train()?;
            if summary.stopped {
                break;
            }
        }
        let is_missing = |name: &&String| !self.target.is_in(self.trainer.library, name);
        summary.missing_elsewhere = summary.elsewhere.iter().filter(is_missing).cloned().collect();
        Ok(())
    }

    /// Warns of a part without passes, and of one on another kind of machine than the first.
    fn warn_of_part(&self, on_event: &mut OnEvent) {
        let Some(part) = self.trainer.part else { return };
        let (passes, here) = (self.manifest.passes.len(), vector_instructions());
        if part.index >= passes {
            let text = format!(
                "part {part} has nothing to train, since the run has {passes} passes; experts_per_pass makes them smaller"
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

    /// The passes with unfinished experts, by index, and those experts.
    fn unfinished_passes(&self, kept: &[String]) -> Vec<(usize, Vec<String>)> {
        let kept: HashSet<&String> = kept.iter().collect();
        let unfinished = |pass: &Vec<String>| pass.iter().filter(|name| !kept.contains(name)).cloned().collect();
        let passes = self.manifest.passes.iter().map(unfinished).enumerate();
        passes.filter(|(_, names): &(usize, Vec<String>)| !names.is_empty()).collect()
    }

    /// The jobs of a pass.
    pub(crate) fn pass_jobs(&self, index: usize) -> Result<Vec<Job>> {
        let find = |name: &String| {
            let job = self.jobs.jobs.iter().find(|job| job.name == *name).cloned();
            job.ok_or_else(|| TrainError::UnknownExpert { folder: self.folder.path.clone(), name: name.clone() })
        };
        self.manifest.passes[index].iter().map(find).collect()
    }
}

fn new_manifest(trainer: &Trainer, target: &TrainingTarget, jobs: &FingerprintedJobs) -> Result<RunManifest> {
    let Trainer { base, config, seed, .. } = *trainer;
    let batch_tokens = memory_estimate::batch_tokens(base, config, target.backward_mode(base));
    Ok(RunManifest {
        version: env!("CARGO_PKG_VERSION").into(),
        seed,
        base: base.identity().fingerprint.clone(),
        settings: OpaqueRecord::new(config)?,
        batch_tokens: base.batch_parallel(batch_tokens).tokens(),
        passes: Vec::new(),
        jobs: jobs.fingerprints.iter().map(OpaqueRecord::new).collect::<std::result::Result<_, _>>()?,
        parts: None,
        vector_instructions: None,
    })
}

/// One pass of a run in training.
struct PassRun<'r, 's> {
    run: &'r TrainingRun<'r>,
    /// The base of the pass: for full fine-tuning the one that trains.
    base: &'r Base,
    index: usize,
    /// The lock of the run's part, if the run is divided.
    lock: Option<&'r LibraryLock>,
    on_event: &'s mut OnEvent<'s>,
    summary: &'s mut RunSummary,
}

impl PassRun<'_, '_> {
    /// Trains the pass to its end, or until it is stopped.
    fn train(mut self) -> Result<()> {
        let run = self.run;
        let jobs = run.pass_jobs(self.index)?;
        let parts = run.manifest.parts;
        let folder = run.folder.of_pass(self.index, parts)?;
        create_folder(&folder)?;
        while_held(self.lock, || run.folder.adopt_checkpoint(self.index, parts))?;
        let path = run.folder.checkpoint(self.index, parts)?;
        let mut pass = self.resume(&jobs, &path)?;
        (self.on_event)(TrainEvent::Pass { index: self.index, done: pass.steps_done(), steps: pass.steps() });
        let mut log = while_held(self.lock, || RunLog::open(&folder, self.index, pass.steps_done()))?;
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
            let every = run.trainer.config.save_steps;
            let due = every > 0 && step.step.is_multiple_of(every);
            if shared_end || (due && pass.is_running()) {
                self.save_checkpoint(&pass, &path)?;
            }
            self.save_finished(&pass, step.ended)?;
        }
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
        let mut pass = self.run.target.pass(context, jobs)?;
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
            if self.summary.kept.contains(&job.name) || self.summary.trained.contains(&job.name) {
                continue;
            }
            if let Some(why) = &progress.failure {
                if !self.summary.failed.iter().any(|(name, _)| *name == job.name) {
                    self.summary.failed.push((job.name.clone(), why.clone()));
                    (self.on_event)(TrainEvent::Failed { expert: &job.name, why });
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

/// Makes a change unless another process has taken the lock over, if there is one. A process that is suspended amid a change may find what it wrote
/// removed by its successor: then that is the reason, not the failed write.
fn while_held<T>(lock: Option<&LibraryLock>, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(lock) = lock else { return change() };
    lock.ensure_held()?;
    change().map_err(|error| lock.ensure_held().err().map_or(error, TrainError::from))
}
