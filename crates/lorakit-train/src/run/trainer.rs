//! Trains jobs into a library: divides experts into passes, and stores each when it is finished.
//!
//! The jobs of a run (experts with their settings, rows, seed and base) determine its folder `runs/ID`. The same command
//! finds the folder again, continues from the checkpoint of an unfinished pass, and leaves finished experts alone. How
//! experts are divided into passes is decided when the folder is created, and kept: the last bits of an expert depend on
//! the experts that share its pass, and an interrupted run must end with the same bytes as one that was not.

use crate::error::{Result, TrainError};
use crate::job::Job;
use crate::pass::{Pass, PassContext};
use crate::run::device_memory::MemoryEstimate;
use crate::run::job_fingerprint::{JobFingerprint, differences};
use crate::run::loss_history::LossHistory;
use crate::run::memory_estimate;
use crate::run::pass_checkpoint;
use crate::run::run_log::RunLog;
use crate::run::run_manifest::RunManifest;
use crate::run::train_event::TrainEvent;
use crate::run::training_target::{FullFineTuning, SkillTraining, TrainingTarget};
use crate::train_config::TrainConfig;
use lorakit_adapter::{ExpertRecord, Library, OpaqueRecord, ensure_expert_name};
use lorakit_model::Base;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The run's folder; empty if there was nothing to train.
    pub folder: PathBuf,
}

/// A progress callback.
type OnEvent<'e> = dyn FnMut(TrainEvent) + 'e;

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
        let fields = target.fingerprint_fields(self.config);
        let fingerprint = |job: &Job| JobFingerprint::new(job, self.base, fields.clone(), self.seed);
        let fingerprints: Vec<JobFingerprint> = jobs.iter().map(fingerprint).collect();
        let mut summary = RunSummary { kept: self.finished(target, &jobs, &fingerprints)?, ..RunSummary::default() };
        if !self.restart {
            for (job, fingerprint) in jobs.iter().zip(&fingerprints) {
                target.check_free(self.library, &job.name, &fingerprint.sha256())?;
            }
        }
        remove_stale(&run_folder(self.library, &fingerprints)?, &summary.kept)?;
        if summary.kept.len() == jobs.len() {
            let estimate = MemoryEstimate::default();
            on_event(TrainEvent::Planned { passes: &[], kept: &summary.kept, estimate });
            return Ok(summary);
        }
        let run = Run::open(*self, target, Jobs { jobs, fingerprints }, &summary.kept)?;
        summary.folder = run.folder.clone();
        run.train(on_event, &mut summary)?;
        Ok(summary)
    }

    /// The names of the jobs whose results the library has with the same fingerprint.
    fn finished(&self, target: &TrainingTarget, jobs: &[Job], fingerprints: &[JobFingerprint]) -> Result<Vec<String>> {
        let mut kept = Vec::new();
        for (job, fingerprint) in jobs.iter().zip(fingerprints) {
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
        Ok(kept)
    }
}

/// The folder of the run that trains these jobs.
fn run_folder(library: &Library, fingerprints: &[JobFingerprint]) -> Result<PathBuf> {
    Ok(library.run_folder(&JobFingerprint::sha256_of_all(fingerprints)[..12])?)
}

/// The path of a pass's checkpoint in the folder of its run.
fn checkpoint_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("pass-{index}.safetensors"))
}

/// Removes checkpoints of passes whose experts are all in the library, which a process leaves that is killed between the
/// two.
fn remove_stale(folder: &Path, kept: &[String]) -> Result<()> {
    let path = folder.join("run.json");
    if !path.exists() {
        return Ok(());
    }
    let passes = RunManifest::read(&path)?.passes;
    let ended = (0..passes.len()).filter(|&index| passes[index].iter().all(|name| kept.contains(name)));
    ended.map(|index| checkpoint_path(folder, index)).filter(|path| path.exists()).try_for_each(|path| remove(&path))
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|source| TrainError::Io { path: path.to_owned(), action: "removed", source })
}

/// Jobs, each with what determines its weights.
struct Jobs {
    jobs: Vec<Job>,
    fingerprints: Vec<JobFingerprint>,
}

/// A run with its folder.
struct Run<'a> {
    trainer: Trainer<'a>,
    target: &'a TrainingTarget<'a>,
    jobs: Jobs,
    folder: PathBuf,
    manifest: RunManifest,
}

impl<'a> Run<'a> {
    /// Opens the run's folder, or creates it and divides the experts into passes.
    fn open(trainer: Trainer<'a>, target: &'a TrainingTarget, jobs: Jobs, kept: &[String]) -> Result<Self> {
        // Finished experts are part of the folder's name: the same command must find it at any time.
        let folder = run_folder(trainer.library, &jobs.fingerprints)?;
        std::fs::create_dir_all(&folder).map_err(|source| TrainError::Io {
            path: folder.clone(),
            action: "created",
            source,
        })?;
        let path = folder.join("run.json");
        let mut manifest = match path.exists() {
            true => RunManifest::read(&path)?,
            false => new_manifest(&trainer, target, &jobs)?,
        };
        // All experts of a new run; later those that were removed from the library since.
        let is_planned = |name: &String| manifest.passes.iter().flatten().any(|other| other == name);
        let missing: Vec<Job> =
            jobs.jobs.iter().filter(|job| !kept.contains(&job.name) && !is_planned(&job.name)).cloned().collect();
        if !missing.is_empty() {
            let per_pass = target.jobs_per_pass(trainer.base, &missing, trainer.config)?;
            let names: Vec<String> = missing.into_iter().map(|job| job.name).collect();
            manifest.passes.extend(names.chunks(per_pass).map(<[String]>::to_vec));
            manifest.write(&path)?;
        }
        Ok(Self { trainer, target, jobs, folder, manifest })
    }

    /// Trains all unfinished passes, until the run is stopped.
    fn train(&self, on_event: &mut OnEvent, summary: &mut RunSummary) -> Result<()> {
        let Trainer { base, config, .. } = self.trainer;
        let largest = self.manifest.passes.iter().map(Vec::len).max().unwrap_or(1);
        let estimate = self.target.memory(base, &self.jobs.jobs, largest, config)?;
        memory_estimate::check_fits(base, &estimate)?;
        let unfinished = self.unfinished_passes(&summary.kept);
        let passes: Vec<Vec<String>> = unfinished.iter().map(|(_, names)| names.clone()).collect();
        on_event(TrainEvent::Planned { passes: &passes, kept: &summary.kept, estimate });
        let trainable = match self.target {
            TrainingTarget::Model(model) => Some((model.open)()?),
            TrainingTarget::Experts | TrainingTarget::Skills(_) => None,
        };
        let base = trainable.as_ref().unwrap_or(base);
        for (number, (index, _)) in unfinished.into_iter().enumerate() {
            let mut on_event = |event: TrainEvent| on_event(event.with_pass_index(number));
            PassRun { run: self, base, index, on_event: &mut on_event, summary }.train()?;
            if summary.stopped {
                break;
            }
        }
        Ok(())
    }

    /// The passes with unfinished experts, by index, and those experts.
    fn unfinished_passes(&self, kept: &[String]) -> Vec<(usize, Vec<String>)> {
        let unfinished = |pass: &Vec<String>| pass.iter().filter(|name| !kept.contains(name)).cloned().collect();
        let passes = self.manifest.passes.iter().map(unfinished).enumerate();
        passes.filter(|(_, names): &(usize, Vec<String>)| !names.is_empty()).collect()
    }

    /// The jobs of a pass.
    fn pass_jobs(&self, index: usize) -> Result<Vec<Job>> {
        let find = |name: &String| {
            let job = self.jobs.jobs.iter().find(|job| job.name == *name).cloned();
            job.ok_or_else(|| TrainError::UnknownExpert { folder: self.folder.clone(), name: name.clone() })
        };
        self.manifest.passes[index].iter().map(find).collect()
    }
}

fn new_manifest(trainer: &Trainer, target: &TrainingTarget, jobs: &Jobs) -> Result<RunManifest> {
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
    })
}

/// One pass of a run in training.
struct PassRun<'r, 's> {
    run: &'r Run<'r>,
    /// The base of the pass: for full fine-tuning the one that trains.
    base: &'r Base,
    index: usize,
    on_event: &'s mut OnEvent<'s>,
    summary: &'s mut RunSummary,
}

impl PassRun<'_, '_> {
    /// Trains the pass to its end, or until it is stopped.
    fn train(mut self) -> Result<()> {
        let run = self.run;
        let jobs = run.pass_jobs(self.index)?;
        let path = checkpoint_path(&run.folder, self.index);
        let mut pass = self.resume(&jobs, &path)?;
        (self.on_event)(TrainEvent::Pass { index: self.index, done: pass.steps_done(), steps: pass.steps() });
        let mut log = RunLog::open(&run.folder, self.index, pass.steps_done())?;
        self.save_finished(&pass, (0..jobs.len()).collect())?;
        while pass.is_running() {
            if run.trainer.stop.load(Ordering::Relaxed) {
                pass_checkpoint::save(&pass, &path)?;
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
                pass_checkpoint::save(&pass, &path)?;
            }
            self.save_finished(&pass, step.ended)?;
        }
        close(&pass, &path)
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

    /// Stores experts that have reached their end in the library; those that are there stay unchanged.
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
            self.run.target.save(trainer.library, pass, expert, &self.record(pass, expert)?)?;
            self.summary.trained.push(job.name.clone());
            (self.on_event)(TrainEvent::Finished { expert: &job.name, progress });
        }
        Ok(())
    }

    /// The record of a finished expert.
    fn record(&self, pass: &Pass, expert: usize) -> Result<ExpertRecord> {
        let (job, progress) = (&pass.jobs()[expert], &pass.progress()[expert]);
        let Jobs { jobs, fingerprints } = &self.run.jobs;
        let fingerprint = jobs.iter().zip(fingerprints).find(|(other, _)| other.name == job.name).map(|(_, own)| own);
        let fingerprint = fingerprint
            .ok_or_else(|| TrainError::UnknownExpert { folder: self.run.folder.clone(), name: job.name.clone() })?;
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
            sha256: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }
}

/// Removes the checkpoint of a finished pass, unless experts failed: then it keeps the reasons for the next run.
fn close(pass: &Pass, path: &Path) -> Result<()> {
    if pass.progress().iter().any(|progress| progress.failure.is_some()) {
        return pass_checkpoint::save(pass, path);
    }
    if path.exists() { remove(path) } else { Ok(()) }
}
