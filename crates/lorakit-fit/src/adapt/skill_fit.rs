//! `poly` and `poly_z`: a library's experts as skills, whose routing is fitted to a target task, with or without the skills
//! (Poly and PolyZ of <https://arxiv.org/abs/2405.11157>, Tables 3 and 6).

use super::adapt_method::{Action, AdaptMethod, AdaptMethodInfo, Adapted, Configure, no_settings};
use super::adapter_record::{identity, kept, record};
use super::outcomes::Outcomes;
use crate::error::{FitError, Result};
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::TrainingPlan;
use lorakit_adapter::{Adapter, ExpertRecord, Library, OpaqueRecord};
use lorakit_format::hash::sha256;
use lorakit_train::{
    FitScope, Job, RoutingFit, RoutingSpec, SkillStack, StepInterval, TrainConfig, config_for_adapters, routing_store,
};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;

/// The method `poly`.
pub static POLY: AdaptMethodInfo = AdaptMethodInfo {
    name: "poly",
    settings: no_settings,
    summary: "tune all experts of the library and their routing together, or the skills of --poly if it has some",
    link: Some("https://arxiv.org/abs/2202.13914"),
    needs_library: true,
    uses_train_config: true,
    parse: |typed| read(&POLY, FitScope::All, typed),
};

/// The method `poly_z`.
pub static POLY_Z: AdaptMethodInfo = AdaptMethodInfo {
    name: "poly_z",
    settings: no_settings,
    summary: "fit the routing alone, at routing_learning_rate; PolyZ of the paper",
    link: Some("https://arxiv.org/abs/2405.11157"),
    needs_library: true,
    uses_train_config: true,
    parse: |typed| read(&POLY_Z, FitScope::Routing, typed),
};

fn read(info: &'static AdaptMethodInfo, scope: FitScope, typed: Option<&str>) -> Result<Arc<dyn AdaptMethod>> {
    info.ensure_no_settings(typed)?;
    Ok(Arc::new(SkillMethod { info, scope }))
}

/// Skills, mixed by a routing that is fitted, alone or with them.
#[derive(Debug)]
struct SkillMethod {
    info: &'static AdaptMethodInfo,
    scope: FitScope,
}

impl fmt::Display for SkillMethod {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.info.name)
    }
}

impl AdaptMethod for SkillMethod {
    fn info(&self) -> &'static AdaptMethodInfo {
        self.info
    }

    fn action<'a>(&'a self, library: Option<&'a OpenLibrary>, configure: &Configure) -> Result<Box<dyn Action + 'a>> {
        let opened = library.ok_or(FitError::NeedsLibrary)?;
        let skills = LibrarySkills::of(opened)?;
        let config = configure(skills.settings()?)?;
        Ok(Box::new(SkillFit { method: self, opened, skills, config }))
    }
}

/// The fit of skills over an open library.
struct SkillFit<'a> {
    method: &'a SkillMethod,
    opened: &'a OpenLibrary,
    skills: LibrarySkills,
    /// The settings of training, with the rank and scale of the skills.
    config: TrainConfig,
}

impl Action for SkillFit<'_> {
    fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Fits the skills to the rows of each job, and writes the mixed adapters into `out`. Those that are there from the
    /// same rows, experts and settings are kept.
    fn run(&self, context: &TrainContext, jobs: Vec<(TrainingPlan, Job)>, out: &Library) -> Result<Adapted> {
        let unused = unused(self.method.scope, &self.config, &self.skills.settings()?).join(", ");
        if !unused.is_empty() {
            let name = self.method.info.name;
            context.reporter.warn(&format!("--method {name} does not use the settings {unused}"));
        }
        let mut outcomes = Outcomes::default();
        for (_, job) in jobs {
            outcomes.add(&job.name, self.fit_one(context, &job, out));
        }
        Ok(Adapted::Routed(outcomes))
    }
}

/// The settings that differ from the defaults and that fitting skills does not use.
fn unused(scope: FitScope, settings: &TrainConfig, defaults: &TrainConfig) -> Vec<&'static str> {
    let only_routing = scope == FitScope::Routing;
    let changed = [
        ("learning_rate", only_routing && settings.learning_rate != defaults.learning_rate),
        ("dropout", settings.dropout > 0.0 && settings.dropout != defaults.dropout),
        ("eval_steps", settings.eval_steps.is_some_and(|every| every != StepInterval::NEVER)),
        ("save_steps", settings.save_steps != defaults.save_steps),
        ("max_loss_jump", settings.max_loss_jump != defaults.max_loss_jump),
        ("experts_per_pass", settings.experts_per_pass.is_some()),
        ("splits", settings.splits != defaults.splits),
        ("tie_qkv", settings.tie_qkv),
    ];
    changed.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
}

/// The skills of an open library: those of its routing `poly`, where they are open, else all its open experts.
struct LibrarySkills {
    adapters: Vec<Adapter>,
    /// The SHA-256 of the routing, where the skills are its own.
    routing: Option<String>,
}

impl LibrarySkills {
    /// The skills of an open library.
    ///
    /// # Errors
    /// Where the routing cannot be read, or its skills have changed.
    fn of(opened: &OpenLibrary) -> Result<Self> {
        let (library, experts) = (&opened.library, &opened.experts);
        let adapter = |name: &String| Ok(experts.experts()[experts.index(name)?].adapter.clone());
        let routing = if uses_routing(opened)? { routing_store::read(library, "poly")? } else { None };
        let names = routing.as_ref().map_or(experts.names(), |routing| &routing.skills);
        Ok(Self {
            adapters: names.iter().map(adapter).collect::<Result<_>>()?,
            routing: if routing.is_some() { library.router_sha256("poly")? } else { None },
        })
    }

    /// The default settings of training, with the rank and scale of the skills.
    ///
    /// # Errors
    /// Where their shapes differ.
    fn settings(&self) -> Result<TrainConfig> {
        Ok(config_for_adapters(&self.adapters, &TrainConfig::default())?)
    }
}

/// Whether the skills are those of the routing `poly`: not where others were chosen, or where none of them is left. Where
/// some are, reading the routing says which one is not.
fn uses_routing(opened: &OpenLibrary) -> Result<bool> {
    let (library, open) = (&opened.library, opened.experts.names());
    let skills = routing_store::named_skills(library, "poly")?;
    let found = skills.iter().filter(|skill| open.contains(skill)).count();
    Ok(found > 0 && (found == skills.len() || open.len() == library.expert_names()?.len()))
}

impl SkillFit<'_> {
    fn fit_one(&self, context: &TrainContext, job: &Job, library: &Library) -> Result<Value> {
        let (opened, settings, tuned) = (self.opened, &self.config, self.method.scope);
        let (name, seed) = (&job.name, context.seed);
        let method = self.method.info.name;
        let mut identity = identity(context, method, opened, &job.train)?;
        identity["settings"] = settings.fingerprint_fields().into();
        // Which experts are skills, and in which order.
        identity["routing"] = json!(self.skills.routing);
        let hash = sha256(identity.to_string().as_bytes());
        if let Some(record) = kept(context, library, name, &hash)? {
            context.reporter.status(&format!("{name}: finished before"));
            return Ok(record.losses.read()?);
        }
        let (base, routing) = (context.base, RoutingSpec { tasks: std::slice::from_ref(name), splits: 1 });
        let stack = SkillStack::new(base, self.skills.adapters.clone(), routing, settings, seed)?;
        context.reporter.status(&format!("{name}: fitting to {} rows", job.train.len()));
        let losses =
            json!({ "train": RoutingFit { base, config: settings, scope: tuned, seed }.fit(&stack, &job.train)? });
        let record = ExpertRecord {
            settings: OpaqueRecord::new(&identity)?,
            settings_sha256: hash,
            ..record(context, opened, job, &losses)?
        };
        let adapter = stack.task_adapter(0)?.with_target_names(&base.modules()).with_task_type(base.task_type());
        library.replace(name, &adapter, Some(&record))?;
        Ok(losses)
    }
}
