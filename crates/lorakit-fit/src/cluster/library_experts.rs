//! The experts of a library as clustering reads them, with the A that their training started from.

use crate::error::{FitError, Result};
use lorakit_adapter::{Adapter, ExpertRecord, Library, Matrix};
use lorakit_cluster::ExpertSet;
use lorakit_lora::SiteRole;
use lorakit_model::architecture::module_names;
use lorakit_train::initial_a;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The record of each expert, where there is one.
///
/// # Errors
/// Where a record cannot be read.
pub fn records(library: &Library, names: &[String]) -> Result<BTreeMap<String, Option<ExpertRecord>>> {
    names.iter().map(|name| Ok((name.clone(), library.record(name)?))).collect()
}

/// The experts, read when they are first needed, with the A that they all started from where it is recorded.
///
/// # Errors
/// Where a name occurs twice, there are fewer than two, or an adapter cannot be read.
pub fn open_experts<'a>(
    library: &'a Library,
    names: Vec<String>,
    records: &BTreeMap<String, Option<ExpertRecord>>,
) -> Result<ExpertSet<'a>> {
    let start = InitialA::of(library, records)?;
    let experts = ExpertSet::new(names, |name| library.adapter(name))?;
    Ok(match start {
        Some(start) => experts.with_initial_a(move |module| start.a(module)),
        None => experts,
    })
}

/// What the common initial A is drawn from.
struct InitialA {
    seed: u64,
    tied: bool,
    /// Any of the experts, for the modules and ranks; the space `change` refuses experts of other ranks.
    like: Adapter,
}

/// The setting of a trained expert that decides which modules share an A.
#[derive(Deserialize)]
struct TyingSettings {
    #[serde(default)]
    tie_qkv: bool,
}

impl InitialA {
    /// The initial A of experts that all record the same one; `None` where one records another or none.
    fn of(library: &Library, records: &BTreeMap<String, Option<ExpertRecord>>) -> Result<Option<Self>> {
        let drawn_from = |record: &Option<ExpertRecord>| {
            let record = record.as_ref()?;
            let settings: Option<TyingSettings> = record.settings.field("settings").ok().flatten();
            Some((record.initial_seed?, settings.is_some_and(|settings| settings.tie_qkv)))
        };
        let Some((first, record)) = records.first_key_value() else { return Ok(None) };
        match drawn_from(record) {
            Some((seed, tied)) if records.values().all(|other| drawn_from(other) == Some((seed, tied))) => {
                Ok(Some(Self { seed, tied, like: library.adapter(first)? }))
            }
            _ => Ok(None),
        }
    }

    /// The A of a module.
    fn a(&self, module: &str) -> Result<Matrix> {
        let update = self.like.modules().get(module).ok_or_else(|| FitError::UnknownModule(module.to_owned()))?;
        let drawn = self.drawn_as(module);
        Ok(Matrix::new(update.rank(), update.input(), initial_a(self.seed, &drawn, update.rank(), update.input()))?)
    }

    /// The module that a module's A was drawn for: where A is tied, the first of q, k and v that is adapted.
    fn drawn_as(&self, module: &str) -> String {
        let tied = module_names(SiteRole::AttentionInput);
        match module.rsplit_once('.') {
            Some((parent, name)) if self.tied && tied.contains(&name) => {
                let siblings = tied.iter().map(|sibling| format!("{parent}.{sibling}"));
                siblings
                    .into_iter()
                    .find(|sibling| self.like.modules().contains_key(sibling))
                    .unwrap_or_else(|| module.to_owned())
            }
            _ => module.to_owned(),
        }
    }
}
