//! Adapters of target tasks from a library's experts as skills: their routing is fitted, and the skills with it or not
//! (Poly and PolyZ of <https://arxiv.org/abs/2405.11157>, Tables 3 and 6).

use super::compose::{identity, kept, record};
use super::fits::Fits;
use crate::experts::Opened;
use crate::training::World;
use anyhow::Result;
use lorakit_adapter::{Adapter, ExpertRecord, Library};
use lorakit_format::hash::sha256;
use lorakit_train::{FitScope, Job, TrainConfig, fit_routing, routing_store};
use lorakit_train::{SkillStack, config_for_adapters};
use serde_json::{Value, json};

/// The settings, of those that were changed, that fitting skills does not use.
pub fn unused(settings: &TrainConfig, defaults: &TrainConfig) -> Vec<&'static str> {
    let changed = [
        ("dropout", settings.dropout > 0.0 && settings.dropout != defaults.dropout),
        ("eval_steps", settings.eval_steps.is_some_and(|steps| steps > 0)),
        ("save_steps", settings.save_steps != defaults.save_steps),
        ("max_loss_jump", settings.max_loss_jump != defaults.max_loss_jump),
        ("tie_qkv", settings.tie_qkv),
    ];
    changed.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
}

/// How skills are fitted.
pub struct Fitting<'a> {
    /// The base, and all else that training is given.
    pub world: &'a World<'a>,
    /// The library that the skills are from.
    pub opened: &'a Opened,
    /// The routing alone, or all.
    pub tuned: FitScope,
    /// The settings of training, of the skills' form.
    pub settings: &'a TrainConfig,
}

/// The skills of a library: those of its routing poly, where it has one, else all its experts.
pub struct Skills(Vec<Adapter>);

impl Skills {
    /// Those of an open library.
    ///
    /// # Errors
    /// Where the routing's skills are not among its experts.
    pub fn of(opened: &Opened) -> Result<Self> {
        let experts = &opened.experts;
        let adapter = |name: &String| Ok(experts.experts()[experts.index(name)?].adapter.clone());
        let names = routing_store::read(&opened.library, "poly")?.map(|routing| routing.skills);
        let skills: Result<_> = names.as_deref().unwrap_or(experts.names()).iter().map(adapter).collect();
        skills.map(Self)
    }

    /// The defaults of training that agree with the skills.
    ///
    /// # Errors
    /// Where they cannot be mixed as A's and B's.
    pub fn settings(&self) -> Result<TrainConfig> {
        config_for_adapters(&self.0, &TrainConfig::default())
    }

    /// Fits them to the rows of each job, and puts the mixed adapters into `library`; those that are there by the same
    /// rows, experts and settings are left alone.
    pub fn adapt(&self, how: &Fitting, library: &Library, jobs: Vec<Job>) -> Fits {
        let mut fits = Fits::default();
        for job in jobs {
            fits.keep(&job.name, self.adapt_one(how, library, &job));
        }
        fits
    }

    fn adapt_one(&self, how: &Fitting, library: &Library, job: &Job) -> Result<Value> {
        let Fitting { world, opened, tuned, settings } = *how;
        let (name, seed) = (&job.name, world.context.seed);
        let method = if tuned == FitScope::All { "poly" } else { "poly_z" };
        let mut identity = identity(world, method, opened, &job.train)?;
        identity["settings"] = settings.fingerprint_fields();
        // Which experts are skills, and in which order.
        identity["routing"] = json!(opened.library.router_sha256("poly")?);
        let hash = sha256(identity.to_string().as_bytes());
        if let Some(record) = kept(world, library, name, &hash)? {
            world.context.output.status(format!("{name}: finished before"));
            return Ok(record.losses);
        }
        let (sites, device) = (world.base.sites(), world.base.device());
        let stack = SkillStack::new(sites, device, self.0.clone(), 1, std::slice::from_ref(name), settings, seed)?;
        world.context.output.status(format!("{name}: fitting to {} rows", job.train.len()));
        let losses = json!({ "train": fit_routing(world.base, &stack, &job.train, tuned, settings, seed)? });
        let record = ExpertRecord { settings: identity, settings_sha256: hash, ..record(world, opened, job, &losses) };
        library.replace(name, &stack.adapter_of(0)?.with_target_names(&world.base.modules()), Some(&record))?;
        Ok(losses)
    }
}
