//! The routing of skills in a library, `routers/NAME/`: a record with the skills' experts, their weights' hashes and the
//! routed tasks, and the logits of each site.

use crate::error::{Result, TrainError};
use crate::trainable::skill_mixing::SkillDims;
use crate::trainable::skill_stack::SkillStack;
use candle_core::Device;
use lorakit_adapter::{ExpertRecord, Library, Matrix, RouterRecord};
use lorakit_format::hash::sha256;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A stored routing.
#[derive(Clone, Debug)]
pub struct StoredRouting {
    /// The experts that are the skills, in order.
    pub skills: Vec<String>,
    /// The routed tasks, in the order of the logits' rows.
    pub tasks: Vec<String>,
    /// The blocks in which skills are mixed.
    pub splits: usize,
    /// How skills and routing were trained; its `sha256` is that of router.safetensors.
    pub record: ExpertRecord,
    /// By site, `[tasks, splits * skills]`.
    pub logits: BTreeMap<String, Matrix>,
}

/// The routing's part of a router's record.
#[derive(Serialize, Deserialize)]
struct RoutingRecord {
    tasks: Vec<String>,
    splits: usize,
    record: ExpertRecord,
}

/// The experts' names of a routing's skills: `poly_0` and so on.
pub fn skill_names(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|skill| format!("{name}_{skill}")).collect()
}

/// Reads a routing; None if the library has none of that name.
///
/// # Errors
/// If its files cannot be read or contradict each other, or its skills are not those that it was trained with: an
/// interrupted training that replaces skills leaves new skills with an old routing.
pub fn read(library: &Library, name: &str) -> Result<Option<StoredRouting>> {
    let Some(record) = read_record(library, name)? else { return Ok(None) };
    let place = format!("{}/{name}", library.routers_folder().display());
    let at = |source: TrainError| TrainError::Context { what: place.clone(), source: Box::new(source) };
    if let Some(change) = library.changed_expert(&record.experts).map_err(|error| at(error.into()))? {
        return Err(TrainError::ChangedSkills { place, change, name: name.to_owned() });
    }
    let state = library.router_state(name, &record)?;
    let RouterRecord { experts, origin: RoutingRecord { tasks, splits, record }, .. } = record;
    let skills: Vec<String> = experts.into_iter().map(|skill| skill.name).collect();
    let logits = logits(&state, &tasks, splits, &skills).map_err(at)?;
    Ok(Some(StoredRouting { skills, tasks, splits, record, logits }))
}

/// The logits of a state, checked to have the expected shapes.
fn logits(state: &[u8], tasks: &[String], splits: usize, skills: &[String]) -> Result<BTreeMap<String, Matrix>> {
    let columns = splits.checked_mul(skills.len()).ok_or(TrainError::TooManySplits { splits, skills: skills.len() })?;
    let matrix = |(site, tensor): (String, candle_core::Tensor)| {
        let (found, expected) = (tensor.dims2()?, (tasks.len(), columns));
        if found != expected {
            return Err(TrainError::LogitsShape { site, found, expected });
        }
        Ok((site, Matrix::new(found.0, found.1, tensor.flatten_all()?.to_vec1()?)?))
    };
    candle_core::safetensors::load_buffer(state, &Device::Cpu)?.into_iter().map(matrix).collect()
}

/// Whether the library has a routing of that name, with the skills that belong to it.
pub fn is_complete(library: &Library, name: &str) -> bool {
    matches!(read(library, name), Ok(Some(_)))
}

/// How a routing was trained; None if the library has none of that name.
///
/// # Errors
/// If its record cannot be read.
pub fn record(library: &Library, name: &str) -> Result<Option<ExpertRecord>> {
    Ok(read_record(library, name)?.map(|record| record.origin.record))
}

/// The experts that a stored routing names as its skills, whether or not they have changed since; none if the library has
/// none of that name.
///
/// # Errors
/// If its record cannot be read.
pub fn named_skills(library: &Library, name: &str) -> Result<Vec<String>> {
    let experts = read_record(library, name)?.map(|record| record.experts).unwrap_or_default();
    Ok(experts.into_iter().map(|skill| skill.name).collect())
}

/// Whether the library has experts that were trained as skills of a routing of that name.
pub fn has_skills(library: &Library, name: &str) -> Result<bool> {
    let names = library.expert_names()?;
    for expert in names.iter().filter(|expert| is_skill_of(name, expert)) {
        let Some(record) = library.record(expert)? else { continue };
        let settings: Option<BTreeMap<String, IgnoredAny>> = record.settings.field("settings").unwrap_or_default();
        if settings.is_some_and(|settings| settings.contains_key("skills")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_skill_of(name: &str, expert: &str) -> bool {
    let number = expert.strip_prefix(name).and_then(|rest| rest.strip_prefix('_'));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// The [`named_skills`] that a training of the routing wrote; none if the record cannot be read.
pub(crate) fn recorded_skills(library: &Library, name: &str) -> Vec<String> {
    named_skills(library, name).unwrap_or_default().into_iter().filter(|skill| is_skill_of(name, skill)).collect()
}

fn read_record(library: &Library, name: &str) -> Result<Option<RouterRecord<RoutingRecord>>> {
    Ok(library.router_record(name)?)
}

/// Stores the routing of a stack, replacing one of the same name. Its skills must be in the library.
///
/// # Errors
/// If a skill is missing, or the routing cannot be written.
pub fn write(library: &Library, name: &str, stack: &SkillStack, tasks: &[String], record: &ExpertRecord) -> Result<()> {
    let SkillDims { count, splits } = stack.dims();
    let tensors = stack.routing_variables();
    let tensors = tensors.iter().map(|(site, logits)| (site.trim_end_matches(".routing"), logits.as_tensor()));
    let state = safetensors::serialize(tensors, None)?;
    let experts = library.expert_hashes(&skill_names(name, count))?;
    let record = ExpertRecord { sha256: sha256(&state), ..record.clone() };
    let own = RoutingRecord { tasks: tasks.to_vec(), splits, record };
    Ok(library.put_router(name, &experts, &own, &state)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_with_a_wrong_number_of_splits_is_refused() {
        let skills = ["poly_0", "poly_1"].map(str::to_owned);
        let logits = Matrix::new(1, 2, vec![0.0; 2]).unwrap();
        let tensor = candle_core::Tensor::from_slice(&logits.values(), (1, 2), &Device::Cpu).unwrap();
        let state = safetensors::serialize([("0.qkv", &tensor)], None).unwrap();
        let read = |splits| super::logits(&state, &["t".to_owned()], splits, &skills);
        assert_eq!(read(1).unwrap()["0.qkv"], logits);
        for (splits, message) in [(3, "expected (1, 6)"), (usize::MAX, "too many")] {
            let error = read(splits).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
