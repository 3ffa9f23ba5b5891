//! The routing of skills as a library keeps it in `routers/NAME/`: its record says which experts are the skills, with the
//! weights that belong to the routing, and which tasks were routed; its state is the logits of each site.

use crate::trainable::skill_stack::{SkillDims, SkillStack};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use lorakit_adapter::{ExpertRecord, Library, Matrix, RouterRecord};
use lorakit_format::hash::sha256;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A kept routing.
#[derive(Clone, Debug)]
pub struct StoredRouting {
    /// The experts that are the skills, in the order of their numbers.
    pub skills: Vec<String>,
    /// The tasks that were routed, in the order of the logits' rows.
    pub tasks: Vec<String>,
    /// In how many blocks the skills are mixed.
    pub splits: usize,
    /// How skills and routing were trained; the `sha256` is that of router.safetensors.
    pub record: ExpertRecord,
    /// By site, `[tasks, splits * skills]`.
    pub logits: BTreeMap<String, Matrix>,
}

/// What the record of a routing says of it.
#[derive(Serialize, Deserialize)]
struct Description {
    tasks: Vec<String>,
    splits: usize,
    record: ExpertRecord,
}

/// The names of the experts that are the skills of a routing: `poly_0` and so on.
pub fn skill_names(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|skill| format!("{name}_{skill}")).collect()
}

/// The routing of that name; None where the library has none.
///
/// # Errors
/// Where its files cannot be read or contradict each other, or its skills are no longer those that it was trained with: a
/// training that was cut short while it replaced them leaves new skills with an old routing.
pub fn read(library: &Library, name: &str) -> Result<Option<StoredRouting>> {
    let Some(record) = describe(library, name)? else { return Ok(None) };
    let place = || format!("{}/{name}", library.routers_folder().display());
    if let Some(change) = library.changed_expert(&record.experts).with_context(place)? {
        bail!(
            "{}: not the routing of the library's skills: {change}; train skills and routing anew: the same \
             `train-experts --{name}` with --restart",
            place()
        );
    }
    let state = library.router_state(name, &record)?;
    let RouterRecord { experts, of: Description { tasks, splits, record }, .. } = record;
    let skills: Vec<String> = experts.into_iter().map(|skill| skill.name).collect();
    let logits = logits(&state, &tasks, splits, &skills).with_context(place)?;
    Ok(Some(StoredRouting { skills, tasks, splits, record, logits }))
}

/// The logits of a state, each of the expected shape.
fn logits(state: &[u8], tasks: &[String], splits: usize, skills: &[String]) -> Result<BTreeMap<String, Matrix>> {
    let columns = splits.checked_mul(skills.len());
    let columns = columns.with_context(|| format!("{splits} splits of {} skills are too many", skills.len()))?;
    let matrix = |(site, tensor): (String, candle_core::Tensor)| {
        let found = tensor.dims2()?;
        let expected = (tasks.len(), columns);
        ensure!(found == expected, "`{site}` is {found:?}; expected {expected:?}");
        Ok((site, Matrix::new(found.0, found.1, tensor.flatten_all()?.to_vec1()?)?))
    };
    candle_core::safetensors::load_buffer(state, &Device::Cpu)?.into_iter().map(matrix).collect()
}

/// Whether the library has a routing of that name with the skills that belong to it.
pub fn is_whole(library: &Library, name: &str) -> bool {
    matches!(read(library, name), Ok(Some(_)))
}

/// How the routing of that name was trained; None where the library has none.
///
/// # Errors
/// Where its record cannot be read.
pub fn record(library: &Library, name: &str) -> Result<Option<ExpertRecord>> {
    Ok(describe(library, name)?.map(|record| record.of.record))
}

/// Whether the library has experts that were trained as skills of such a routing.
pub fn has_skills(library: &Library, name: &str) -> Result<bool> {
    let names = library.expert_names()?;
    for expert in names.iter().filter(|expert| is_skill_of(name, expert)) {
        if library.record(expert)?.is_some_and(|record| record.settings.pointer("/settings/skills").is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_skill_of(name: &str, expert: &str) -> bool {
    let number = expert.strip_prefix(name).and_then(|rest| rest.strip_prefix('_'));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// The experts that the routing of that name has for skills, whether they are still those or not.
pub(crate) fn skills(library: &Library, name: &str) -> Vec<String> {
    let own = |skill: &String| is_skill_of(name, skill);
    let record = describe(library, name).ok().flatten();
    record.into_iter().flat_map(|record| record.experts).map(|skill| skill.name).filter(own).collect()
}

fn describe(library: &Library, name: &str) -> Result<Option<RouterRecord<Description>>> {
    library.router_record(name)
}

/// Keeps the routing of a stack under a name, in place of the one of that name. Its skills are in the library.
///
/// # Errors
/// Where a skill is not there, or the routing cannot be written.
pub fn write(library: &Library, name: &str, stack: &SkillStack, tasks: &[String], record: &ExpertRecord) -> Result<()> {
    let SkillDims { count, splits } = stack.form();
    let tensors = stack.routing_variables();
    let tensors = tensors.iter().map(|(site, logits)| (site.trim_end_matches(".routing"), logits.as_tensor()));
    let state = safetensors::serialize(tensors, None)?;
    let experts = library.expert_weights(&skill_names(name, count))?;
    let record = ExpertRecord { sha256: sha256(&state), ..record.clone() };
    library.put_router(name, &experts, &Description { tasks: tasks.to_vec(), splits, record }, &state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_that_claims_any_number_of_splits_is_refused() {
        let skills = ["poly_0", "poly_1"].map(str::to_owned);
        let logits = Matrix::new(1, 2, vec![0.0; 2]).unwrap();
        let tensor = candle_core::Tensor::from_slice(&logits.values(), (1, 2), &Device::Cpu).unwrap();
        let state = safetensors::serialize([("0.qkv", &tensor)], None).unwrap();
        let read = |splits| super::logits(&state, &["t".to_owned()], splits, &skills);
        assert_eq!(read(1).unwrap()["0.qkv"], logits);
        for (splits, said) in [(3, "expected (1, 6)"), (usize::MAX, "too many")] {
            let error = format!("{:#}", read(splits).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }
}
