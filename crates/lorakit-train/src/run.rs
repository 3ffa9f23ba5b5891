//! A run: experts shared out to passes, trained, and kept in the library as each is finished.
//!
//! What a run is, its settings, rows, seed and base, decides its folder `runs/ID`. The same command again finds the
//! folder, goes on from the checkpoint of the pass that was not finished, and leaves finished experts alone.

use crate::checkpoint;
use crate::job::Job;
use crate::memory::{self, Estimate};
use crate::pass::{Pass, Progress, Step};
use crate::product::{Model, Product};
use crate::settings::Settings;
use anyhow::{Context, Result, bail, ensure};
use lorakit_adapter::{ExpertRecord, Library, persist, sha256::sha256};
use lorakit_model::Base;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// How a run is carried out.
pub struct Options<'a> {
    /// Seed of the common start, the data order and dropout.
    pub seed: u64,
    /// Whether experts that exist with other settings are trained anew.
    pub restart: bool,
    /// Set from outside to stop at the end of the present step.
    pub stop: &'a AtomicBool,
}

/// What happens in a run, for whoever watches.
pub enum Event<'a> {
    /// The work is known.
    Planned {
        /// Experts to be trained, pass by pass.
        passes: &'a [Vec<String>],
        /// Experts that were there already.
        kept: &'a [String],
        /// What the largest pass needs.
        estimate: Estimate,
    },
    /// A pass starts, or goes on after `done` steps.
    Pass {
        /// Its number, from zero.
        index: usize,
        /// Steps done before.
        done: usize,
        /// All its steps.
        steps: usize,
    },
    /// A step was taken.
    Step {
        /// What it did.
        step: &'a Step,
        /// The experts of the pass.
        experts: &'a [String],
    },
    /// An expert is in the library.
    Finished {
        /// Its name.
        expert: &'a str,
        /// Its losses.
        progress: &'a Progress,
    },
    /// An expert was given up.
    Failed {
        /// Its name.
        expert: &'a str,
        /// Why.
        why: &'a str,
    },
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
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

/// Trains an expert for each job into `library`; experts that are there with the same settings and rows are left alone.
pub fn train_experts(
    base: &Base,
    library: &Library,
    jobs: Vec<Job>,
    settings: &Settings,
    options: &Options,
    watch: &mut dyn FnMut(Event),
) -> Result<Summary> {
    ensure!(!jobs.is_empty(), "there is no expert to train");
    train(base, &Product::Experts, library, jobs, settings, options, watch)
}

/// Trains all weights of a base on the rows of `job`, and keeps them as the library's model of the job's name; one that
/// is there with the same settings and rows is left alone. `base` is the base as it is, which is only looked at.
pub fn train_model(
    base: &Base,
    model: &Model,
    library: &Library,
    job: Job,
    settings: &Settings,
    options: &Options,
    watch: &mut dyn FnMut(Event),
) -> Result<Summary> {
    train(base, &Product::Model(model), library, vec![job], settings, options, watch)
}

fn train(
    base: &Base,
    product: &Product,
    library: &Library,
    jobs: Vec<Job>,
    settings: &Settings,
    options: &Options,
    watch: &mut dyn FnMut(Event),
) -> Result<Summary> {
    let noun = product.noun();
    for job in &jobs {
        ensure!(!job.train.is_empty(), "{noun} '{}': its tasks have no rows to train on", job.name);
    }
    let identity =
        jobs.iter().map(|job| job_identity(job, base, product, settings, options.seed)).collect::<Result<Vec<_>>>()?;
    let (kept, jobs) = finished(library, product, jobs, &identity, options.restart)?;
    let mut summary = Summary { kept, ..Summary::default() };
    if jobs.is_empty() {
        watch(Event::Planned { passes: &[], kept: &summary.kept, estimate: Estimate::default() });
        return Ok(summary);
    }
    let mut run = Run::open(base, product, library, jobs, settings, options)?;
    summary.folder = run.folder.clone();
    let largest = run.manifest.passes.iter().map(Vec::len).max().unwrap_or(1);
    let estimate = product.estimate(base, &run.jobs, largest, settings)?;
    memory::ensure_fits(&estimate)?;
    watch(Event::Planned { passes: &run.manifest.passes, kept: &summary.kept, estimate });
    let trained = match product {
        Product::Model(model) => Some((model.open)()?),
        Product::Experts => None,
    };
    run.base = trained.as_ref().unwrap_or(base);
    for index in 0..run.manifest.passes.len() {
        run.pass(index, options, watch, &mut summary)?;
        if summary.stopped {
            break;
        }
    }
    Ok(summary)
}

/// What decides an expert's weights, as JSON.
fn job_identity(job: &Job, base: &Base, product: &Product, settings: &Settings, seed: u64) -> Result<Value> {
    let rows = |rows: &[lorakit_task::Example]| {
        let mut bytes = Vec::new();
        for row in rows {
            for part in [&row.prompt, &row.target] {
                bytes.extend((part.len() as u64).to_le_bytes());
                part.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
            }
        }
        sha256(&bytes)
    };
    let mut start = Vec::new();
    for (module, pair) in job.start.iter().flat_map(|a| a.modules()) {
        start.extend(module.as_bytes());
        [pair.a(), pair.b()].into_iter().for_each(|m| m.values().iter().for_each(|v| start.extend(v.to_le_bytes())));
    }
    let mut identity = json!({
        "base": base.identity().fingerprint,
        "expert": job.name,
        "rows": rows(&job.train),
        "seed": seed,
        "settings": product.decisive(settings),
        "start": if start.is_empty() { Value::Null } else { sha256(&start).into() },
        "tasks": serde_json::to_value(job.tasks.iter().map(|t| &t.name).collect::<Vec<_>>())?,
        "validation": rows(&job.validation),
    });
    if job.sharers != 1 {
        identity["sharers"] = job.sharers.into();
    }
    Ok(identity)
}

fn hash(value: &Value) -> String {
    sha256(value.to_string().as_bytes())
}

/// Parts the jobs whose experts exist from those to be trained.
fn finished(
    library: &Library,
    product: &Product,
    jobs: Vec<Job>,
    identities: &[Value],
    restart: bool,
) -> Result<(Vec<String>, Vec<Job>)> {
    let (mut kept, mut open) = (Vec::new(), Vec::new());
    for (job, identity) in jobs.into_iter().zip(identities) {
        if !product.is_in(library, &job.name) {
            open.push(job);
            continue;
        }
        let record = product.record(library, &job.name)?;
        if record.as_ref().is_some_and(|record| record.settings_sha256 == hash(identity)) {
            kept.push(job.name);
        } else if restart {
            open.push(job);
        } else {
            bail!(
                "{} '{}' is in the library, {}; --restart would train it anew",
                product.noun(),
                job.name,
                record.map_or("without a record of its training".to_string(), |record| differences(
                    &record.settings,
                    identity
                ))
            );
        }
    }
    Ok((kept, open))
}

/// What differs between the recorded and the wanted settings, for a message.
fn differences(recorded: &Value, wanted: &Value) -> String {
    let mut found = Vec::new();
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if key == "settings" {
            for (key, value) in value.as_object().into_iter().flatten() {
                let before = &recorded["settings"][key];
                if before != value {
                    found.push(format!("{key} was {before} and is now {value}"));
                }
            }
        } else if recorded[key] != *value {
            found.push(format!("its {key} differ"));
        }
    }
    format!("trained otherwise: {}", if found.is_empty() { "its record differs".into() } else { found.join(", ") })
}

/// A run with its folder.
struct Run<'a> {
    base: &'a Base,
    product: &'a Product<'a>,
    library: &'a Library,
    settings: &'a Settings,
    jobs: Vec<Job>,
    folder: PathBuf,
    manifest: Manifest,
}

impl<'a> Run<'a> {
    /// Opens the run's folder, or makes it and decides how experts share passes.
    fn open(
        base: &'a Base,
        product: &'a Product<'a>,
        library: &'a Library,
        jobs: Vec<Job>,
        settings: &'a Settings,
        options: &Options,
    ) -> Result<Self> {
        let identity = |job| job_identity(job, base, product, settings, options.seed);
        let identities = jobs.iter().map(identity).collect::<Result<Vec<_>>>()?;
        let id = &hash(&Value::Array(identities.clone()))[..12];
        let folder = library.root().join("runs").join(id);
        std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
        let path = folder.join("run.json");
        let manifest = if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{}: not a run of lorakit", path.display()))?
        } else {
            let experts = product.jobs_per_pass(base, &jobs, settings)?;
            let names: Vec<String> = jobs.iter().map(|job| job.name.clone()).collect();
            let manifest = Manifest {
                version: env!("CARGO_PKG_VERSION").into(),
                seed: options.seed,
                base: base.identity().fingerprint.clone(),
                settings: serde_json::to_value(settings)?,
                batch_tokens: memory::batch_tokens(base, settings),
                passes: names.chunks(experts).map(<[String]>::to_vec).collect(),
                jobs: Value::Array(identities),
            };
            persist::write_file(&path, &serde_json::to_vec_pretty(&manifest)?)?;
            manifest
        };
        Ok(Self { base, product, library, settings, jobs, folder, manifest })
    }

    fn checkpoint(&self, index: usize) -> PathBuf {
        self.folder.join(format!("pass-{index}.safetensors"))
    }

    /// Trains one pass to its end, or to where it is stopped.
    fn pass(&self, index: usize, options: &Options, watch: &mut dyn FnMut(Event), summary: &mut Summary) -> Result<()> {
        let names = &self.manifest.passes[index];
        let jobs: Vec<Job> =
            names.iter().filter_map(|name| self.jobs.iter().find(|job| job.name == *name).cloned()).collect();
        let batch_tokens = self.manifest.batch_tokens;
        let mut pass = self.product.pass(self.base, &jobs, self.settings, options.seed, batch_tokens)?;
        let path = self.checkpoint(index);
        if path.exists() {
            checkpoint::load(&mut pass, &path)?;
        }
        watch(Event::Pass { index, done: pass.step_number(), steps: pass.steps() });
        let mut log = Log::open(&self.folder)?;
        self.keep_ended(&pass, &jobs, (0..jobs.len()).collect(), options, watch, summary)?;
        while pass.step_number() < pass.steps() {
            if options.stop.load(Ordering::Relaxed) {
                checkpoint::save(&pass, &path)?;
                summary.stopped = true;
                return Ok(());
            }
            let step = pass.advance()?;
            log.write(index, &step, names, &pass)?;
            watch(Event::Step { step: &step, experts: names });
            if self.settings.save_steps > 0 && step.step.is_multiple_of(self.settings.save_steps) {
                checkpoint::save(&pass, &path)?;
            }
            self.keep_ended(&pass, &jobs, step.ended, options, watch, summary)?;
        }
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
        Ok(())
    }

    /// Puts experts that are at their end into the library.
    fn keep_ended(
        &self,
        pass: &Pass,
        jobs: &[Job],
        ended: Vec<usize>,
        options: &Options,
        watch: &mut dyn FnMut(Event),
        summary: &mut Summary,
    ) -> Result<()> {
        for expert in ended {
            let (job, progress) = (&jobs[expert], &pass.progress()[expert]);
            if let Some(why) = &progress.failure {
                if !summary.failed.iter().any(|(name, _)| *name == job.name) {
                    summary.failed.push((job.name.clone(), why.clone()));
                    watch(Event::Failed { expert: &job.name, why });
                }
                continue;
            }
            if pass.step_number() < job.steps(self.settings) || summary.trained.contains(&job.name) {
                continue;
            }
            let identity = job_identity(job, self.base, self.product, self.settings, options.seed)?;
            let record = ExpertRecord {
                tasks: job.tasks.clone(),
                settings_sha256: hash(&identity),
                settings: identity,
                seed: options.seed,
                initial_seed: self.product.initial_seed(job, options.seed),
                losses: Product::losses(pass, expert),
                tokens: progress.tokens,
                base_fingerprint: Some(self.base.identity().fingerprint.clone()),
                sha256: String::new(),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            self.product.keep(self.library, self.base, pass, expert, &record)?;
            summary.trained.push(job.name.clone());
            watch(Event::Finished { expert: &job.name, progress });
        }
        Ok(())
    }
}

/// log.jsonl: a line per step.
struct Log {
    file: std::fs::File,
    path: PathBuf,
}

impl Log {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { file, path })
    }

    fn write(&mut self, pass: usize, step: &Step, experts: &[String], state: &Pass) -> Result<()> {
        let losses: serde_json::Map<String, Value> = experts
            .iter()
            .zip(&step.losses)
            .enumerate()
            .filter_map(|(e, (name, loss))| {
                Some((name.clone(), json!({ "loss": (*loss)?, "grad_norm": state.progress()[e].norms.last() })))
            })
            .collect();
        let validated: serde_json::Map<String, Value> =
            step.validated.iter().map(|&(e, loss)| (experts[e].clone(), json!(loss))).collect();
        let mut line = json!({ "pass": pass, "step": step.step, "tokens": step.tokens, "train": losses });
        if !validated.is_empty() {
            line["validation"] = Value::Object(validated);
        }
        writeln!(self.file, "{line}").with_context(|| format!("{}: cannot be written", self.path.display()))
    }
}
