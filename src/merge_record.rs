//! How a merged adapter or base came about, kept beside it: exactly enough to merge again and compare.

use anyhow::{Context as _, Result};
use lorakit_adapter::{BaseIdentity, ExpertRecord, Library, TaskRecord};
use lorakit_format::hash::sha256;
use lorakit_route::Experts;
use lorakit_route::merge::{Coefficients, Merge};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The file beside a merged base. A merged adapter has its record in its expert.json.
pub const RECORD_FILE: &str = "merge.json";

/// What was merged, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeRecord {
    /// The method with all its settings, as it can be typed.
    pub method: String,
    /// The experts in the order in which they were merged.
    pub experts: Vec<MergedExpert>,
    /// The experts' weights in modules that have weights of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub module_weights: BTreeMap<String, Vec<f64>>,
    /// Where the weights were fitted to rows: how, and to which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
}

/// How weights were fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The way with all its settings, as it can be typed.
    pub composition: String,
    /// The tasks whose train rows they were fitted to.
    pub tasks: Vec<TaskRecord>,
    /// The seed of the order of rows.
    pub seed: u64,
    /// What was found: the weights, and what left-out rows say of them.
    pub found: Value,
}

/// One expert's part in a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergedExpert {
    /// Its name in the library.
    pub name: String,
    /// Its weight.
    pub weight: f64,
    /// The SHA-256 of its adapter_model.safetensors.
    pub sha256: String,
}

/// merge.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MergedBase {
    /// What was merged.
    pub merge: MergeRecord,
    /// The base into which it was merged.
    pub base: BaseIdentity,
    /// The tasks on whose rows its experts were trained, and what else these or the base had seen before.
    #[serde(default)]
    pub seen: Vec<TaskRecord>,
    /// The version of lorakit that merged it.
    pub version: String,
}

impl MergedBase {
    /// The record of a merge into `base`, of which `before` says how it came about where that is known.
    pub fn new(
        merge: &MergeRecord,
        library: &Library,
        base: &BaseIdentity,
        before: Option<ExpertRecord>,
    ) -> Result<Self> {
        let merged = merge.expert_record(library, Some(base))?;
        let mut seen = Vec::new();
        for record in [Some(merged), before].into_iter().flatten() {
            add(&mut seen, record.tasks);
            add(&mut seen, record.seen);
        }
        Ok(Self { merge: merge.clone(), base: base.clone(), seen, version: env!("CARGO_PKG_VERSION").to_owned() })
    }
}

impl MergeRecord {
    /// The record of a merge of a library's experts with these weights.
    pub fn new(method: String, library: &Library, names: &[String], weights: &[f64]) -> Result<Self> {
        let expert = |(name, weight): (&String, &f64)| {
            Ok(MergedExpert { name: name.clone(), weight: *weight, sha256: library.weights_sha256(name)? })
        };
        let experts = names.iter().zip(weights).map(expert).collect::<Result<_>>()?;
        Ok(Self { method, experts, module_weights: BTreeMap::new(), fit: None })
    }

    /// The record of a merge with fitted weights. Where modules have weights of their own, an expert's weight is their
    /// mean.
    pub fn fitted(
        merge: &Merge,
        library: &Library,
        experts: &Experts,
        coefficients: &Coefficients,
        fit: Fit,
    ) -> Result<Self> {
        let of_modules = coefficients.modules();
        let n = of_modules.len() as f64;
        let mean = |expert: usize| of_modules.values().map(|weights| weights[expert]).sum::<f64>() / n;
        let weights: Vec<f64> = match of_modules.is_empty() {
            true => coefficients.at("").to_vec(),
            false => (0..experts.len()).map(mean).collect(),
        };
        let record = Self::new(merge.to_string(), library, experts.names(), &weights)?;
        Ok(Self { module_weights: of_modules.clone(), fit: Some(fit), ..record })
    }

    /// The weights, as a merge takes them.
    pub fn coefficients(&self) -> Coefficients {
        let shared = Coefficients::new(self.experts.iter().map(|expert| expert.weight).collect());
        let of_modules = self.module_weights.iter();
        of_modules.fold(shared, |all, (module, weights)| all.with_module(module.clone(), weights.clone()))
    }

    /// The names of the experts.
    pub fn names(&self) -> Vec<String> {
        self.experts.iter().map(|expert| expert.name.clone()).collect()
    }

    /// expert.json of the merged adapter: it saw whatever its experts saw, and the rows of its fit.
    pub fn expert_record(&self, library: &Library, base: Option<&BaseIdentity>) -> Result<ExpertRecord> {
        let (mut tasks, mut seen, mut tokens) = (Vec::new(), Vec::new(), 0);
        add(&mut tasks, self.fit.iter().flat_map(|fit| fit.tasks.clone()));
        for expert in &self.experts {
            let Some(record) = library.record(&expert.name)? else { continue };
            tokens += record.tokens;
            add(&mut tasks, record.tasks);
            add(&mut seen, record.seen);
        }
        let settings = json!({ "merge": self });
        Ok(ExpertRecord {
            tasks,
            seen,
            settings_sha256: sha256(settings.to_string().as_bytes()),
            settings,
            tokens,
            base_fingerprint: base.or(library.base()).map(|base| base.fingerprint.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ExpertRecord::default()
        })
    }
}

/// Adds those that are not there yet: of one task there may be several, split by different seeds.
fn add(all: &mut Vec<TaskRecord>, more: impl IntoIterator<Item = TaskRecord>) {
    for task in more {
        if !all.contains(&task) {
            all.push(task);
        }
    }
}

/// The record in a merged folder, of an adapter or of a base; None where there is none.
pub fn read(folder: &Path) -> Result<Option<MergeRecord>> {
    if let Some(base) = read_base(folder)? {
        return Ok(Some(base.merge));
    }
    let Some(record) = crate::experts::record_beside(folder)? else { return Ok(None) };
    let Some(merge) = record.settings.get("merge") else { return Ok(None) };
    let merge = serde_json::from_value(merge.clone());
    merge
        .map(Some)
        .with_context(|| format!("{}: `merge` is not as lorakit writes it", folder.join("expert.json").display()))
}

/// merge.json of a merged base; None where there is none.
pub fn read_base(folder: &Path) -> Result<Option<MergedBase>> {
    let path = folder.join(RECORD_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let text = lorakit_format::read_text(&path)?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{}: not as lorakit writes it", path.display()))
}
