//! The record beside a merged adapter or base: enough to repeat the merge and compare.

use crate::error::{Result, WithContext as _};
use crate::open_library::weights_sha256;
use crate::record_file::{parse_json, read_record, record_beside};
use crate::trained_encoding::{encoding_settings, trained_encoding};
use lorakit_adapter::{
    BaseIdentity, EXPERT_RECORD_FILE, ExpertRecord, Library, MODEL_RECORD_FILE, OpaqueRecord, TaskRecord,
};
use lorakit_route::merge::{Coefficients, MergeMethod};
use lorakit_route::{Expert, LibraryStack};
use lorakit_task::RowEncoding;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The file beside a merged base. A merged adapter has its record in its `expert.json`.
pub const MERGE_RECORD_FILE: &str = "merge.json";

/// What was merged, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeRecord {
    /// The method with all its settings, as it is typed.
    pub method: String,
    /// What was done to the experts before the merge and to its result, if anything, as it is typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// The experts in the order in which they were merged.
    pub experts: Vec<MergedExpert>,
    /// The experts' weights in modules that have weights of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub module_weights: BTreeMap<String, Vec<f64>>,
    /// Where the weights were fitted to rows: how, and to which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<FitRecord>,
}

/// How weights were fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitRecord {
    /// The fitted merge with all its settings, as it is typed.
    #[serde(rename = "composition")]
    pub merge: String,
    /// The tasks whose train rows they were fitted to.
    pub tasks: Vec<TaskRecord>,
    /// The seed of the order of rows.
    pub seed: u64,
    /// The weights, and their loss on held-out rows.
    pub found: Value,
}

/// One expert of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergedExpert {
    /// Its name in the library.
    pub name: String,
    /// Its weight.
    pub weight: f64,
    /// The SHA-256 of its adapter_model.safetensors.
    pub sha256: String,
}

/// `merge.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MergedBaseRecord {
    /// What was merged.
    pub merge: MergeRecord,
    /// The base that it was merged into.
    pub base: BaseIdentity,
    /// The tasks that its experts were trained on, and those that these or the base had seen before.
    #[serde(default)]
    pub seen: Vec<TaskRecord>,
    /// How the rows of its experts became tokens, if not as by default: settings of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Value>,
    /// The version of lorakit that merged it.
    pub version: String,
}

impl MergedBaseRecord {
    /// The record of a merge into `base`; `before` is the record of the base itself, where there is one.
    ///
    /// # Errors
    /// Where an expert's record cannot be read.
    pub fn new(
        merge: &MergeRecord,
        library: &Library,
        base: &BaseIdentity,
        before: Option<ExpertRecord>,
    ) -> Result<Self> {
        let merged = merge.expert_record(library, Some(base))?;
        let settings = merged.settings.field("settings")?;
        let mut seen = Vec::new();
        for record in [Some(merged), before].into_iter().flatten() {
            add(&mut seen, record.tasks);
            add(&mut seen, record.seen);
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Self { merge: merge.clone(), base: base.clone(), seen, settings, version })
    }
}

impl MergeRecord {
    /// The record of a merge of a library's experts with these weights.
    ///
    /// # Errors
    /// Where an expert's weights cannot be read.
    pub fn new(method: String, library: &Library, experts: &[Expert], weights: &[f64]) -> Result<Self> {
        let expert = |(expert, weight): (&Expert, &f64)| {
            let sha256 = weights_sha256(library, expert)?;
            Ok(MergedExpert { name: expert.name.clone(), weight: *weight, sha256 })
        };
        let experts = experts.iter().zip(weights).map(expert).collect::<Result<_>>()?;
        Ok(Self { method, calibration: None, experts, module_weights: BTreeMap::new(), fit: None })
    }

    /// The record of a merge with fitted weights. Where modules have weights of their own, an expert's weight is their
    /// mean.
    ///
    /// # Errors
    /// Where an expert's weights cannot be read.
    pub fn fitted(
        merge: &dyn MergeMethod,
        library: &Library,
        experts: &LibraryStack,
        coefficients: &Coefficients,
        fit: FitRecord,
    ) -> Result<Self> {
        let of_modules = coefficients.modules();
        let n = of_modules.len() as f64;
        let mean = |expert: usize| of_modules.values().map(|weights| weights[expert]).sum::<f64>() / n;
        let weights: Vec<f64> = match of_modules.is_empty() {
            true => coefficients.weights().to_vec(),
            false => (0..experts.len()).map(mean).collect(),
        };
        let record = Self::new(merge.to_string(), library, experts.experts(), &weights)?;
        Ok(Self { module_weights: of_modules.clone(), fit: Some(fit), ..record })
    }

    /// The same record of a merge of calibrated experts.
    pub fn calibrated_by(self, calibration: Option<String>) -> Self {
        Self { calibration, ..self }
    }

    /// The method as it is typed, with the calibration if there is one.
    pub fn recipe(&self) -> String {
        match &self.calibration {
            Some(calibration) => format!("{} calibrated by {calibration}", self.method),
            None => self.method.clone(),
        }
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

    /// `expert.json` of the merged adapter: it has seen what its experts have seen, and the rows of its fit.
    ///
    /// # Errors
    /// Where an expert's record cannot be read.
    pub fn expert_record(&self, library: &Library, base: Option<&BaseIdentity>) -> Result<ExpertRecord> {
        let (mut tasks, mut seen, mut tokens) = (Vec::new(), Vec::new(), 0);
        let mut bos = BTreeSet::new();
        add(&mut tasks, self.fit.iter().flat_map(|fit| fit.tasks.clone()));
        for expert in &self.experts {
            let Some(record) = library.record(&expert.name)? else { continue };
            tokens += record.tokens;
            bos.extend(trained_encoding(&record, "").map(|encoding| encoding.bos));
            add(&mut tasks, record.tasks);
            add(&mut seen, record.seen);
        }
        let mut settings = json!({ "merge": self });
        // The templates are in the tasks.
        let common = bos.pop_first().filter(|_| bos.is_empty());
        let common = common.and_then(|bos| encoding_settings(RowEncoding { bos, ..RowEncoding::default() }));
        if let Some(common) = common {
            settings["settings"] = common;
        }
        let settings = OpaqueRecord::new(&settings)?;
        Ok(ExpertRecord {
            tasks,
            seen,
            settings_sha256: settings.sha256(),
            settings,
            tokens,
            base_fingerprint: base.or(library.base()).map(|base| base.fingerprint.clone()),
            base_form: base.or(library.base()).and_then(|base| base.form.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ExpertRecord::default()
        })
    }
}

/// Adds those that are not in `all` yet. One task may be there several times, split by different seeds.
fn add(all: &mut Vec<TaskRecord>, more: impl IntoIterator<Item = TaskRecord>) {
    for task in more {
        if !all.contains(&task) {
            all.push(task);
        }
    }
}

/// The record in a merged folder, of an adapter or of a base; `None` where there is none.
///
/// # Errors
/// Where the file is there and cannot be read.
pub fn read_merge_record(folder: &Path) -> Result<Option<MergeRecord>> {
    if let Some(base) = read_merged_base_record(folder)? {
        return Ok(Some(base.merge));
    }
    let Some(record) = record_beside(folder)? else { return Ok(None) };
    let merge = record.settings.field("merge");
    merge.with_context(|| format!("{}: `merge` is not as lorakit writes it", folder.join(EXPERT_RECORD_FILE).display()))
}

/// `merge.json` of a merged base; `None` where there is none.
///
/// # Errors
/// Where the file is there and cannot be read.
pub fn read_merged_base_record(folder: &Path) -> Result<Option<MergedBaseRecord>> {
    let path = folder.join(MERGE_RECORD_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    parse_json(&path).map(Some)
}

/// The record in the folder of a model that lorakit trained or merged; `None` for any other base.
///
/// # Errors
/// Where the file is there and cannot be read.
pub fn record_of_model(folder: &Path) -> Result<Option<ExpertRecord>> {
    match read_merged_base_record(folder)? {
        Some(MergedBaseRecord { seen: tasks, settings, .. }) => {
            let settings = OpaqueRecord::new(&json!({ "settings": settings }))?;
            Ok(Some(ExpertRecord { tasks, settings, ..ExpertRecord::default() }))
        }
        None => read_record(&folder.join(MODEL_RECORD_FILE)),
    }
}
