//! The routing of skills as a library keeps it: `routers/NAME/` has router.json, which says which experts are the
//! skills and which tasks were routed, and router.safetensors, the logits of each site.

use crate::skills::{SkillStack, Skills};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use lorakit_adapter::sha256::sha256;
use lorakit_adapter::{ExpertRecord, Library, Matrix, persist};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const RECORD: &str = "router.json";
const WEIGHTS: &str = "router.safetensors";

/// A kept routing.
#[derive(Clone, Debug)]
pub struct KeptRouting {
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

/// router.json.
#[derive(Serialize, Deserialize)]
struct Description {
    router: String,
    skills: Vec<String>,
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
/// Where its files cannot be read or contradict each other.
pub fn read(library: &Library, name: &str) -> Result<Option<KeptRouting>> {
    let Some(description) = describe(library, name)? else { return Ok(None) };
    let path = library.router_folder(name)?.join(WEIGHTS);
    let place = || path.display().to_string();
    let bytes = std::fs::read(&path).with_context(place)?;
    ensure!(
        sha256(&bytes) == description.record.sha256,
        "{}: not the weights that router.json was written with; train the skills anew with --restart",
        path.display()
    );
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).with_context(place)?;
    let columns = description.splits * description.skills.len();
    let matrix = |(site, tensor): (String, candle_core::Tensor)| {
        let found = tensor.dims2()?;
        let expected = (description.tasks.len(), columns);
        ensure!(found == expected, "{}: `{site}` is {found:?}; expected {expected:?}", path.display());
        Ok((site, Matrix::new(found.0, found.1, tensor.flatten_all()?.to_vec1()?)?))
    };
    let logits = tensors.into_iter().map(matrix).collect::<Result<_>>()?;
    let Description { skills, tasks, splits, record, .. } = description;
    Ok(Some(KeptRouting { skills, tasks, splits, record, logits }))
}

/// How the routing of that name was trained; None where the library has none.
pub fn record(library: &Library, name: &str) -> Result<Option<ExpertRecord>> {
    Ok(describe(library, name)?.map(|description| description.record))
}

fn describe(library: &Library, name: &str) -> Result<Option<Description>> {
    let path = library.router_folder(name)?.join(RECORD);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{}: not as lorakit writes it", path.display()))
}

/// Keeps the routing of a stack under a name, in place of the one of that name.
///
/// # Errors
/// Where it cannot be written.
pub fn write(library: &Library, name: &str, stack: &SkillStack, tasks: &[String], record: &ExpertRecord) -> Result<()> {
    let Skills { count, splits } = stack.form();
    let tensors = stack.routing_variables();
    let tensors = tensors.iter().map(|(site, logits)| (site.trim_end_matches(".routing"), logits.as_tensor()));
    let bytes = safetensors::serialize(tensors, None)?;
    let description = Description {
        router: name.to_string(),
        skills: skill_names(name, count),
        tasks: tasks.to_vec(),
        splits,
        record: ExpertRecord { sha256: sha256(&bytes), ..record.clone() },
    };
    let routers = library.routers_folder();
    std::fs::create_dir_all(&routers).with_context(|| routers.display().to_string())?;
    persist::replace_folder(&library.router_folder(name)?, |folder| {
        persist::write_file(&folder.join(WEIGHTS), &bytes)?;
        let text = serde_json::to_string_pretty(&description)?;
        persist::write_file(&folder.join(RECORD), format!("{text}\n").as_bytes())
    })
}
