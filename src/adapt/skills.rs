//! Adapters of target tasks from a library's experts as skills: their routing is fitted, and the skills with it or not
//! (Poly and PolyZ of <https://arxiv.org/abs/2405.11157>, Tables 3 and 6).

use super::compose::{identity, kept};
use crate::experts::Opened;
use crate::plan::Plan;
use crate::training::World;
use anyhow::{Context as _, Result};
use lorakit_adapter::sha256::sha256;
use lorakit_adapter::{Adapter, ExpertRecord, Library};
use lorakit_train::skills::{SkillStack, settings_of};
use lorakit_train::{Job, Settings, Tuned, kept_routing, tune};
use serde_json::{Value, json};

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
        let names = kept_routing::read(&opened.library, "poly")?.map(|routing| routing.skills);
        let skills: Result<_> = names.as_deref().unwrap_or(experts.names()).iter().map(adapter).collect();
        skills.map(Self)
    }

    /// The defaults of training that agree with the skills.
    ///
    /// # Errors
    /// Where they cannot be mixed as A's and B's.
    pub fn settings(&self) -> Result<Settings> {
        settings_of(&self.0, &Settings::default())
    }

    /// Fits them to the rows of each plan, and puts the mixed adapters into `library`; those that are there by the same
    /// rows, experts and settings are left alone. Returns what is known of each.
    pub fn adapt(
        &self,
        world: &World,
        tuned: Tuned,
        opened: &Opened,
        library: &Library,
        work: (&[Plan], Vec<Job>),
        settings: &Settings,
    ) -> Result<Vec<Value>> {
        let seed = world.context.seed;
        let method = if tuned == Tuned::All { "poly" } else { "poly_z" };
        let mut found = Vec::new();
        for (plan, job) in work.0.iter().zip(work.1) {
            let name = &plan.name;
            let mut identity = identity(world, method, opened, &job.train)?;
            identity["settings"] = settings.decisive();
            let hash = sha256(identity.to_string().as_bytes());
            if let Some(record) = kept(world, library, name, &hash)? {
                world.context.output.status(format!("{name}: finished before"));
                found.push(record.losses);
                continue;
            }
            let (sites, device) = (world.base.sites(), world.base.device());
            let stack = SkillStack::new(sites, device, self.0.clone(), 1, std::slice::from_ref(name), settings, seed)?;
            world.context.output.status(format!("{name}: fitting to {} rows", job.train.len()));
            let losses = tune(world.base, &stack, &job.train, tuned, settings, seed)
                .with_context(|| format!("task `{name}`"))?;
            let losses = json!({ "train": losses });
            let record = ExpertRecord {
                settings: identity,
                settings_sha256: hash,
                seed,
                losses: losses.clone(),
                tokens: job.train.iter().map(|row| row.target.len() as u64).sum(),
                tasks: job.tasks,
                base_fingerprint: Some(world.base.identity().fingerprint.clone()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..ExpertRecord::default()
            };
            library.replace(name, &stack.adapter_of(0)?.named_within(&world.base.modules()), Some(&record))?;
            found.push(losses);
        }
        Ok(found)
    }
}
