//! What a run is made of: the trainer's settings, its jobs, and the passes that they are divided into.
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
use crate::optim::lr_schedule::LrSchedule;
use crate::run::job_fingerprint::{JobFingerprint, differences};
use crate::run::memory_estimate;
use crate::run::run_folder::{RunFolder, create_folder};
use crate::run::run_manifest::RunManifest;
use crate::run::run_part::{RunPart, vector_instructions};
use crate::run::training_target::TrainingTarget;
use crate::train_config::TrainConfig;
use lorakit_adapter::{Library, OpaqueRecord};
use lorakit_model::Base;
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

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

impl Trainer<'_> {
    /// The jobs, each with what determines its weights.
    pub(crate) fn with_fingerprints(&self, target: &TrainingTarget, jobs: Vec<Job>) -> FingerprintedJobs {
        let fields = target.fingerprint_fields(self.config);
        let fingerprint = |job: &Job| {
            let mut fields = fields.clone();
            // A shortened warm-up changes the fingerprint: experts of earlier versions, whose warm-up took every step, do not
            // count as finished.
            if self.config.warmup_steps.is_none()
                && let Some(warmup) = LrSchedule::shortened_warmup(self.config.warmup_ratio, job.steps(self.config))
            {
                fields.insert("warmup_steps".into(), warmup.into());
                fields.sort_keys();
            }
            JobFingerprint::new(job, self.base, fields, self.seed).with_task_rows(target.task_rows())
        };
        FingerprintedJobs { fingerprints: jobs.iter().map(fingerprint).collect(), jobs }
    }

    /// The names of the jobs whose results the library has with the same fingerprint. Results of the same names with other
    /// fingerprints, which a restart is about to replace, are not among them.
    pub(crate) fn same_results(&self, target: &TrainingTarget, jobs: &FingerprintedJobs) -> Result<Vec<String>> {
        let mut same = Vec::new();
        for (job, fingerprint) in jobs.jobs.iter().zip(&jobs.fingerprints) {
            if target.is_in(self.library, &job.name)
                && let Some(record) = target.record(self.library, &job.name)?
                && record.settings_sha256 == fingerprint.sha256()
            {
                same.push(job.name.clone());
            }
        }
        Ok(same)
    }

    /// As [`Trainer::same_results`].
    ///
    /// # Errors
    /// Unless training is restarted: where the library has other results of these names.
    pub(crate) fn finished(&self, target: &TrainingTarget, jobs: &FingerprintedJobs) -> Result<Vec<String>> {
        let finished = self.same_results(target, jobs)?;
        if self.restart {
            return Ok(finished);
        }
        let known: HashSet<&String> = finished.iter().collect();
        for (job, fingerprint) in jobs.jobs.iter().zip(&jobs.fingerprints) {
            if target.is_in(self.library, &job.name) && !known.contains(&job.name) {
                let difference = match target.record(self.library, &job.name)? {
                    Some(record) => differences(&record.settings.read()?, &fingerprint.to_value()),
                    None => "without a record of its training".to_owned(),
                };
                return Err(TrainError::OtherSettings { noun: target.noun(), name: job.name.clone(), difference });
            }
        }
        for (job, fingerprint) in jobs.jobs.iter().zip(&jobs.fingerprints) {
            target.check_free(self.library, &job.name, &fingerprint.sha256())?;
        }
        Ok(finished)
    }
}

/// Jobs, each with what determines its weights.
pub(crate) struct FingerprintedJobs {
    pub(crate) jobs: Vec<Job>,
    pub(crate) fingerprints: Vec<JobFingerprint>,
}

/// A run with its folder.
pub(crate) struct TrainingRun<'a> {
    pub(crate) trainer: Trainer<'a>,
    pub(crate) target: &'a TrainingTarget<'a>,
    pub(crate) jobs: FingerprintedJobs,
    pub(crate) folder: RunFolder<'a>,
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
        finished: &[String],
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
        let known: HashSet<&String> = manifest.passes.iter().flatten().chain(finished).collect();
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
    pub(crate) fn write_manifest(&self) -> Result<()> {
        if !self.is_changed {
            return Ok(());
        }
        create_folder(&self.folder.path)?;
        self.manifest.write(&self.folder.manifest_path())
    }

    /// The passes with unfinished experts, by index, and those experts.
    pub(crate) fn unfinished_passes(&self, finished: &[String]) -> Vec<(usize, Vec<String>)> {
        let finished: HashSet<&String> = finished.iter().collect();
        let unfinished = |pass: &Vec<String>| pass.iter().filter(|name| !finished.contains(name)).cloned().collect();
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
