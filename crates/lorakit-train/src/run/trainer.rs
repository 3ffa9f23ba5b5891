//! A run: experts shared out to passes, trained, and kept in the library as each is finished.
//!
//! What a run is, its experts with their settings, rows, seed and base, decides its folder `runs/ID`. The same command
//! again finds the folder, goes on from the checkpoint of the pass that was not finished, and leaves finished experts
//! alone. How experts share passes is decided when the folder is made and kept: the last bits of an expert depend on
//! its company, and a run that was killed is to end with the bytes of one that was not.

use crate::job::Job;
use crate::pass::Pass;
use crate::run::event::TrainEvent;
use crate::run::fingerprint::{differences, hash, job_fingerprint};
use crate::run::log::Log;
use crate::run::memory_estimate::{self, MemoryEstimate};
use crate::run::pass_checkpoint;
use crate::run::training_target::{FullFineTuning, SkillTraining, TrainingTarget};
use crate::train_config::TrainConfig;
use anyhow::{Context, Result, bail, ensure};
use lorakit_adapter::{ExpertRecord, Library, ensure_expert_name};
use lorakit_format::{atomic, read_text};
use lorakit_model::Base;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// How a run is carried out.
pub struct RunOptions<'a> {
    /// Seed of the common start, the data order and dropout.
    pub seed: u64,
    /// Whether experts that exist with other settings, and those that were given up, are trained anew.
    pub restart: bool,
    /// Set from outside to stop at the end of the present step.
    pub stop: &'a AtomicBool,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    /// Experts trained now.
    pub trained: Vec<String>,
    /// Experts that were finished before.
    pub kept: Vec<String>,
    /// Experts given up, with the reason.
    pub failed: Vec<(String, String)>,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// The run's folder.
    pub folder: PathBuf,
}

/// run.json.
#[derive(Serialize, Deserialize)]
struct Manifest {
    version: String,
    seed: u64,
    base: String,
    settings: Value,
    batch_tokens: usize,
    passes: Vec<Vec<String>>,
    jobs: Value,
}

impl Manifest {
    fn new(work: &Work, seed: u64) -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            seed,
            base: work.base.identity().fingerprint.clone(),
            settings: serde_json::to_value(work.settings)?,
            batch_tokens: work
                .base
                .batch_parallel(memory_estimate::batch_tokens(work.base, work.settings, work.target.way(work.base)))
                .tokens(),
            passes: Vec::new(),
            jobs: Value::Array(work.identities.clone()),
        })
    }

    fn read(path: &Path) -> Result<Self> {
        serde_json::from_str(&read_text(path)?).with_context(|| {
            format!("{}: not a run of lorakit; remove its folder to start the run afresh", path.display())
        })
    }
}

/// Trains an expert for each job into `library`; experts that are there with the same settings and rows are left alone.
pub fn train_experts(
    base: &Base,
    library: &Library,
    jobs: Vec<Job>,
    settings: &TrainConfig,
    options: &RunOptions,
    watch: &mut dyn FnMut(TrainEvent),
) -> Result<RunSummary> {
    ensure!(!jobs.is_empty(), "there is no expert to train");
    train(base, &TrainingTarget::Experts, library, jobs, settings, options, watch)
}

/// Trains all weights of a base on the rows of `job`, and keeps them as the library's model of the job's name; one that
/// is there with the same settings and rows is left alone. `base` is the base as it is, which is only looked at.
pub fn train_model(
    base: &Base,
    model: &FullFineTuning,
    library: &Library,
    job: Job,
    settings: &TrainConfig,
    options: &RunOptions,
    watch: &mut dyn FnMut(TrainEvent),
) -> Result<RunSummary> {
    train(base, &TrainingTarget::Model(model), library, vec![job], settings, options, watch)
}

/// Trains skills and their routing together on the rows of `job`, and keeps them as the library's experts `NAME_0` and so
/// on and its routing NAME, where NAME is the job's; what is there with the same settings and rows is left alone.
pub fn train_skills(
    base: &Base,
    skills: &SkillTraining,
    library: &Library,
    job: Job,
    settings: &TrainConfig,
    options: &RunOptions,
    watch: &mut dyn FnMut(TrainEvent),
) -> Result<RunSummary> {
    train(base, &TrainingTarget::Skills(skills), library, vec![job], settings, options, watch)
}

fn train(
    base: &Base,
    target: &TrainingTarget,
    library: &Library,
    jobs: Vec<Job>,
    settings: &TrainConfig,
    options: &RunOptions,
    watch: &mut dyn FnMut(TrainEvent),
) -> Result<RunSummary> {
    let noun = target.noun();
    for job in &jobs {
        // A name that the library would refuse is told before the hours of training, not after them.
        ensure_expert_name(&job.name)?;
        ensure!(!job.train.is_empty(), "{noun} '{}': its tasks have no rows to train on", job.name);
    }
    let identity = |job| job_fingerprint(job, base, target, settings, options.seed);
    let identities = jobs.iter().map(identity).collect::<Result<Vec<_>>>()?;
    let kept = finished(library, target, &jobs, &identities, options.restart)?;
    for (job, identity) in jobs.iter().zip(&identities) {
        target.ensure_free(library, &job.name, &hash(identity), options.restart)?;
    }
    remove_stale(&folder_of(library, &identities)?, &kept)?;
    let mut summary = RunSummary { kept, ..RunSummary::default() };
    if summary.kept.len() == jobs.len() {
        watch(TrainEvent::Planned { passes: &[], kept: &summary.kept, estimate: MemoryEstimate::default() });
        return Ok(summary);
    }
    let mut run = Run::open(Work { base, target, library, settings, jobs, identities }, options, &summary.kept)?;
    summary.folder = run.folder.clone();
    let largest = run.manifest.passes.iter().map(Vec::len).max().unwrap_or(1);
    let estimate = target.estimate(base, &run.work.jobs, largest, settings)?;
    memory_estimate::ensure_fits(base, &estimate)?;
    let open: Vec<Vec<String>> = run.open_passes(&summary.kept).into_iter().map(|(_, names)| names).collect();
    watch(TrainEvent::Planned { passes: &open, kept: &summary.kept, estimate });
    let trained = match target {
        TrainingTarget::Model(model) => Some((model.open)()?),
        TrainingTarget::Experts | TrainingTarget::Skills(_) => None,
    };
    run.work.base = trained.as_ref().unwrap_or(base);
    for (number, (index, _)) in run.open_passes(&summary.kept).into_iter().enumerate() {
        run.pass(index, options, &mut |event| watch(event.numbered(number)), &mut summary)?;
        if summary.stopped {
            break;
        }
    }
    Ok(summary)
}

/// The folder of the run that these jobs are.
fn folder_of(library: &Library, identities: &[Value]) -> Result<PathBuf> {
    let id = &hash(&Value::Array(identities.to_vec()))[..12];
    library.run_folder(id)
}

/// The checkpoint of a pass in the folder of its run.
fn checkpoint_of(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("pass-{index}.safetensors"))
}

/// Removes the checkpoints of passes whose experts are all in the library: left by a process that was killed when it had
/// put in the last of them.
fn remove_stale(folder: &Path, kept: &[String]) -> Result<()> {
    let path = folder.join("run.json");
    if !path.exists() {
        return Ok(());
    }
    let passes = Manifest::read(&path)?.passes;
    let ended = (0..passes.len()).filter(|&index| passes[index].iter().all(|name| kept.contains(name)));
    for path in ended.map(|index| checkpoint_of(folder, index)).filter(|path| path.exists()) {
        std::fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
    }
    Ok(())
}

/// What is in the library already, as these jobs would make it.
fn finished(
    library: &Library,
    target: &TrainingTarget,
    jobs: &[Job],
    identities: &[Value],
    restart: bool,
) -> Result<Vec<String>> {
    let mut kept = Vec::new();
    for (job, identity) in jobs.iter().zip(identities) {
        if !target.is_in(library, &job.name) {
            continue;
        }
        let record = target.record(library, &job.name)?;
        if record.as_ref().is_some_and(|record| record.settings_sha256 == hash(identity)) {
            kept.push(job.name.clone());
        } else if !restart {
            bail!(
                "{} '{}' is in the library, {}; --restart would train it anew",
                target.noun(),
                job.name,
                record.map_or("without a record of its training".to_string(), |record| differences(
                    &record.settings,
                    identity
                ))
            );
        }
    }
    Ok(kept)
}

/// What is to be trained, over what, and where it goes.
struct Work<'a> {
    base: &'a Base,
    target: &'a TrainingTarget<'a>,
    library: &'a Library,
    settings: &'a TrainConfig,
    jobs: Vec<Job>,
    /// What decides each job's weights.
    identities: Vec<Value>,
}

/// A run with its folder.
struct Run<'a> {
    work: Work<'a>,
    folder: PathBuf,
    manifest: Manifest,
}

impl<'a> Run<'a> {
    /// Opens the run's folder, or makes it and decides how experts share passes.
    fn open(work: Work<'a>, options: &RunOptions, kept: &[String]) -> Result<Self> {
        // The finished ones count too: what is the same command must not depend on how far it came.
        let folder = folder_of(work.library, &work.identities)?;
        std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
        let path = folder.join("run.json");
        let mut manifest = match path.exists() {
            true => Manifest::read(&path)?,
            false => Manifest::new(&work, options.seed)?,
        };
        // All of them in a new run; later those that were removed from the library since.
        let in_a_pass = |name: &String| manifest.passes.iter().flatten().any(|other| other == name);
        let missing: Vec<Job> =
            work.jobs.iter().filter(|job| !kept.contains(&job.name) && !in_a_pass(&job.name)).cloned().collect();
        if !missing.is_empty() {
            let together = work.target.jobs_per_pass(work.base, &missing, work.settings)?;
            let names: Vec<String> = missing.into_iter().map(|job| job.name).collect();
            manifest.passes.extend(names.chunks(together).map(<[String]>::to_vec));
            atomic::write_file(&path, &serde_json::to_vec_pretty(&manifest)?)?;
        }
        Ok(Self { work, folder, manifest })
    }

    /// The passes with experts that are still to be trained, by their numbers, and those experts.
    fn open_passes(&self, kept: &[String]) -> Vec<(usize, Vec<String>)> {
        let open = |pass: &Vec<String>| pass.iter().filter(|name| !kept.contains(name)).cloned().collect();
        let passes = self.manifest.passes.iter().map(open).enumerate();
        passes.filter(|(_, names): &(usize, Vec<String>)| !names.is_empty()).collect()
    }

    fn checkpoint(&self, index: usize) -> PathBuf {
        checkpoint_of(&self.folder, index)
    }

    /// A pass as its checkpoint has it, or at its start. The experts that are finished are in it too, for company.
    fn resumed<'j>(&'j self, index: usize, jobs: &'j [Job], options: &RunOptions) -> Result<Pass<'j>> {
        let Work { base, target, settings, .. } = &self.work;
        let mut pass = target.pass(base, jobs, settings, options.seed, self.manifest.batch_tokens)?;
        let path = self.checkpoint(index);
        if path.exists() && !(options.restart && pass_checkpoint::has_failures(&path)?) {
            pass_checkpoint::load(&mut pass, &path)?;
        }
        Ok(pass)
    }

    /// Trains one pass to its end, or to where it is stopped.
    fn pass(
        &self,
        index: usize,
        options: &RunOptions,
        watch: &mut dyn FnMut(TrainEvent),
        summary: &mut RunSummary,
    ) -> Result<()> {
        let names = &self.manifest.passes[index];
        let find = |name: &String| {
            self.work.jobs.iter().find(|job| job.name == *name).cloned().with_context(|| {
                format!("{}: run.json names '{name}', which is none of its experts", self.folder.display())
            })
        };
        let jobs: Vec<Job> = names.iter().map(find).collect::<Result<_>>()?;
        let path = self.checkpoint(index);
        let mut pass = self.resumed(index, &jobs, options)?;
        watch(TrainEvent::Pass { index, done: pass.step_number(), steps: pass.steps() });
        let mut log = Log::open(&self.folder, index, pass.step_number())?;
        self.save_finished(&pass, &jobs, (0..jobs.len()).collect(), watch, summary)?;
        while pass.is_running() {
            if options.stop.load(Ordering::Relaxed) {
                pass_checkpoint::save(&pass, &path)?;
                summary.stopped = true;
                return Ok(());
            }
            let step = pass.step()?;
            log.write(index, &step, names, &pass)?;
            watch(TrainEvent::Step { step: &step, experts: names });
            // An expert that ends while others go on, or others with it: its checkpoint comes first, so that a kill
            // after it finds the same company again.
            let shared_end = !step.ended.is_empty() && (pass.is_running() || step.ended.len() > 1);
            let every = self.work.settings.save_steps;
            let due = every > 0 && step.step.is_multiple_of(every);
            if shared_end || (due && pass.is_running()) {
                pass_checkpoint::save(&pass, &path)?;
            }
            self.save_finished(&pass, &jobs, step.ended, watch, summary)?;
        }
        self.close(&pass, &path)
    }

    /// Ends a pass: its checkpoint goes, unless it is to tell next time which experts were given up, and why.
    fn close(&self, pass: &Pass, path: &Path) -> Result<()> {
        if pass.progress().iter().any(|progress| progress.failure.is_some()) {
            return pass_checkpoint::save(pass, path);
        }
        if path.exists() {
            std::fs::remove_file(path).with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
        Ok(())
    }

    /// Puts experts that are at their end into the library; those that are there already stay as they are.
    fn save_finished(
        &self,
        pass: &Pass,
        jobs: &[Job],
        ended: Vec<usize>,
        watch: &mut dyn FnMut(TrainEvent),
        summary: &mut RunSummary,
    ) -> Result<()> {
        for expert in ended {
            let (job, progress) = (&jobs[expert], &pass.progress()[expert]);
            if summary.kept.contains(&job.name) || summary.trained.contains(&job.name) {
                continue;
            }
            if let Some(why) = &progress.failure {
                if !summary.failed.iter().any(|(name, _)| *name == job.name) {
                    summary.failed.push((job.name.clone(), why.clone()));
                    watch(TrainEvent::Failed { expert: &job.name, why });
                }
                continue;
            }
            if pass.step_number() < job.steps(self.work.settings) {
                continue;
            }
            let record = self.record(pass, expert)?;
            self.work.target.keep(self.work.library, self.work.base, pass, expert, &record)?;
            summary.trained.push(job.name.clone());
            watch(TrainEvent::Finished { expert: &job.name, progress });
        }
        Ok(())
    }

    /// The record of an expert that is at its end.
    fn record(&self, pass: &Pass, expert: usize) -> Result<ExpertRecord> {
        let (job, progress) = (&pass.jobs()[expert], &pass.progress()[expert]);
        let place = self.work.jobs.iter().position(|other| other.name == job.name).context("a job of no run")?;
        let identity = &self.work.identities[place];
        Ok(ExpertRecord {
            tasks: job.tasks.clone(),
            seen: job.start.as_ref().map_or_else(Vec::new, |start| start.seen.clone()),
            settings_sha256: hash(identity),
            settings: identity.clone(),
            seed: self.manifest.seed,
            initial_seed: self.work.target.initial_seed(job, self.manifest.seed),
            losses: TrainingTarget::losses(pass, expert),
            tokens: progress.tokens,
            base_fingerprint: Some(self.work.base.identity().fingerprint.clone()),
            sha256: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }
}
