//! Adapters of target tasks from a library's experts as skills: their routing is fitted, with or without the skills
//! (Poly and PolyZ of <https://arxiv.org/abs/2405.11157>, Tables 3 and 6).

use super::adapter_record::{identity, kept, record};
use super::outcomes::Outcomes;
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use anyhow::Result;
use lorakit_adapter::{Adapter, ExpertRecord, Library, OpaqueRecord};
use lorakit_format::hash::sha256;
use lorakit_train::{
    FitScope, Job, RoutingFit, RoutingSpec, SkillStack, TrainConfig, config_for_adapters, routing_store,
};
use serde_json::{Value, json};

/// The settings that differ from the defaults and that fitting skills does not use.
pub(super) fn unused(settings: &TrainConfig, defaults: &TrainConfig) -> Vec<&'static str> {
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
pub(super) struct SkillFit<'a> {
    /// The base, and what else training needs.
    pub context: &'a TrainContext<'a>,
    /// The library of the skills.
    pub opened: &'a OpenLibrary,
    /// What is trained: the routing, or all.
    pub tuned: FitScope,
    /// The settings of training, with the rank and scale of the skills.
    pub settings: &'a TrainConfig,
}

/// The skills of a library: those of its routing `poly`, where it has one, else all its experts.
pub struct LibrarySkills(Vec<Adapter>);

impl LibrarySkills {
    /// The skills of an open library.
    ///
    /// # Errors
    /// Where the routing's skills are not among its experts.
    pub(super) fn of(opened: &OpenLibrary) -> Result<Self> {
        let experts = &opened.experts;
        let adapter = |name: &String| Ok(experts.experts()[experts.index(name)?].adapter.clone());
        let names = routing_store::read(&opened.library, "poly")?.map(|routing| routing.skills);
        let skills: Result<_> = names.as_deref().unwrap_or(experts.names()).iter().map(adapter).collect();
        skills.map(Self)
    }

    /// The default settings of training, with the rank and scale of the skills.
    ///
    /// # Errors
    /// Where their shapes differ.
    pub(super) fn settings(&self) -> Result<TrainConfig> {
        Ok(config_for_adapters(&self.0, &TrainConfig::default())?)
    }

    /// Fits them to the rows of each job, and writes the mixed adapters into `library`. Those that are there from the same
    /// rows, experts and settings are kept.
    pub(super) fn adapt(&self, fit: &SkillFit, library: &Library, jobs: Vec<Job>) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for job in jobs {
            outcomes.add(&job.name, self.adapt_one(fit, library, &job));
        }
        outcomes
    }

    fn adapt_one(&self, fit: &SkillFit, library: &Library, job: &Job) -> Result<Value> {
        let SkillFit { context, opened, tuned, settings } = *fit;
        let (name, seed) = (&job.name, context.seed);
        let method = if tuned == FitScope::All { "poly" } else { "poly_z" };
        let mut identity = identity(context, method, opened, &job.train)?;
        identity["settings"] = settings.fingerprint_fields().into();
        // Which experts are skills, and in which order.
        identity["routing"] = json!(opened.library.router_sha256("poly")?);
        let hash = sha256(identity.to_string().as_bytes());
        if let Some(record) = kept(context, library, name, &hash)? {
            context.reporter.status(&format!("{name}: finished before"));
            return Ok(record.losses.read()?);
        }
        let (base, routing) = (context.base, RoutingSpec { tasks: std::slice::from_ref(name), splits: 1 });
        let stack = SkillStack::new(base, self.0.clone(), routing, settings, seed)?;
        context.reporter.status(&format!("{name}: fitting to {} rows", job.train.len()));
        let losses =
            json!({ "train": RoutingFit { base, config: settings, scope: tuned, seed }.fit(&stack, &job.train)? });
        let record = ExpertRecord {
            settings: OpaqueRecord::new(&identity)?,
            settings_sha256: hash,
            ..record(context, opened, job, &losses)?
        };
        library.replace(name, &stack.task_adapter(0)?.with_target_names(&base.modules()), Some(&record))?;
        Ok(losses)
    }
}
