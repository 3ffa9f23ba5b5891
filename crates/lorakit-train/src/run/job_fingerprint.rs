//! What determines the weights of a job: a job with the same fingerprint is not trained again.

use crate::job::{Init, Job, rows_sha256};
use crate::train_config::TrainConfig;
use lorakit_format::hash::sha256;
use lorakit_model::Base;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Everything that determines the weights of a job. An expert's record stores it as its `settings`; the order of the
/// fields is part of its hash.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct JobFingerprint {
    /// The base's fingerprint.
    base: String,
    /// The job's name.
    expert: String,
    /// The SHA-256 of the training rows.
    rows: String,
    seed: u64,
    /// The settings that determine the weights.
    settings: Map<String, Value>,
    start: Option<InitFingerprint>,
    /// The tasks' names.
    tasks: Vec<String>,
    /// The SHA-256 of the validation rows.
    validation: String,
    /// The type that the base's weights were converted to, if not that of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
    /// The number of experts that divide the rows, if several.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "sharers")]
    row_shards: Option<usize>,
    /// The SHA-256 of the task that each row belongs to, where the weights depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task_rows: Option<String>,
}

/// The adapter that training starts from.
#[derive(Clone, Serialize, Deserialize)]
struct InitFingerprint {
    origin: Value,
    /// The SHA-256 of its modules' names and values.
    sha256: String,
}

impl JobFingerprint {
    /// The fingerprint of a job over a base with some `settings`.
    pub(crate) fn new(job: &Job, base: &Base, settings: Map<String, Value>, seed: u64) -> Self {
        Self {
            base: base.identity().fingerprint.clone(),
            expert: job.name.clone(),
            rows: rows_sha256(&job.train),
            seed,
            settings,
            start: job.init.as_ref().map(InitFingerprint::new),
            tasks: job.tasks.iter().map(|task| task.name.clone()).collect(),
            validation: rows_sha256(&job.validation),
            dtype: base.dtype_override().map(|dtype| dtype.as_str().to_owned()),
            row_shards: (job.row_shards != 1).then_some(job.row_shards),
            task_rows: None,
        }
    }

    /// With the hash of the tasks that the rows belong to; None where the weights do not depend on them.
    pub(crate) fn with_task_rows(self, task_rows: Option<String>) -> Self {
        Self { task_rows, ..self }
    }

    /// The fingerprint as JSON.
    pub(crate) fn to_value(&self) -> Value {
        // A struct of strings, numbers and maps is always representable.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The SHA-256 of the JSON text.
    pub(crate) fn sha256(&self) -> String {
        sha256(self.to_value().to_string().as_bytes())
    }

    /// The SHA-256 of the JSON text of several fingerprints.
    pub(crate) fn sha256_of_all(fingerprints: &[Self]) -> String {
        let all = Value::Array(fingerprints.iter().map(Self::to_value).collect());
        sha256(all.to_string().as_bytes())
    }
}

impl InitFingerprint {
    fn new(init: &Init) -> Self {
        let mut bytes = Vec::new();
        for (module, pair) in init.adapter.modules() {
            bytes.extend(module.as_bytes());
            let values = [pair.a(), pair.b()].map(|matrix| matrix.values());
            values.iter().flat_map(|values| values.iter()).for_each(|v| bytes.extend(v.to_le_bytes()));
        }
        Self { origin: init.origin.clone(), sha256: sha256(&bytes) }
    }
}

/// Describes how a recorded fingerprint differs from the wanted one.
pub(crate) fn differences(recorded: &Value, wanted: &Value) -> String {
    let mut found = Vec::new();
    // Some keys occur in one of them only, such as the dtype.
    let keys = [recorded, wanted].into_iter().flat_map(|value| value.as_object()).flat_map(|object| object.keys());
    for key in keys.collect::<BTreeSet<_>>() {
        let value = &wanted[key];
        if key == "settings" {
            found.extend(setting_differences(&recorded[key], value));
        } else if key == "task_rows" && recorded[key].is_null() {
            found.push("its record does not say which task each row belongs to".to_owned());
        } else if recorded[key] != *value {
            let differ = match key.as_str() {
                "rows" | "tasks" | "task_rows" => "differ",
                _ => "differs",
            };
            found.push(format!("its {key} {differ}"));
        }
    }
    let found = if found.is_empty() { "its record differs".into() } else { found.join(", ") };
    format!("trained with other settings: {found}")
}

/// The settings that differ. A record lacks some that have their default.
pub(crate) fn setting_differences(recorded: &Value, wanted: &Value) -> Vec<String> {
    let defaults = TrainConfig::default().to_map().unwrap_or_default();
    let names = [recorded, wanted].into_iter().filter_map(Value::as_object).flat_map(Map::keys);
    let differs = |name: &String| {
        let of = |settings: &Value| settings.get(name).or_else(|| defaults.get(name)).cloned().unwrap_or_default();
        let (before, now) = (of(recorded), of(wanted));
        (before != now).then(|| format!("{name} was {before} and is now {now}"))
    };
    names.collect::<BTreeSet<_>>().into_iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fingerprint() -> JobFingerprint {
        JobFingerprint {
            base: "b".into(),
            expert: "e".into(),
            rows: "r".into(),
            seed: 3,
            settings: Map::from_iter([("alpha".to_owned(), Value::from(16.0))]),
            start: None,
            tasks: vec!["t".into()],
            validation: "v".into(),
            dtype: None,
            row_shards: None,
            task_rows: None,
        }
    }

    #[test]
    fn the_hashed_text_is_fixed() {
        let text = r#"{"base":"b","expert":"e","rows":"r","seed":3,"settings":{"alpha":16.0},"start":null,"tasks":["t"],"validation":"v""#;
        assert_eq!(fingerprint().to_value().to_string(), format!("{text}}}"));
        assert_eq!(fingerprint().sha256(), sha256(format!("{text}}}").as_bytes()));
        assert_eq!(JobFingerprint::sha256_of_all(&[fingerprint()]), sha256(format!("[{text}}}]").as_bytes()));
        let sharded = JobFingerprint { dtype: Some("f32".into()), row_shards: Some(2), ..fingerprint() };
        assert_eq!(sharded.to_value().to_string(), format!(r#"{text},"dtype":"f32","sharers":2}}"#));
    }

    #[test]
    fn differences_name_the_tasks_of_rows_and_records_without_them() {
        let of = |hash: &str| fingerprint().with_task_rows(Some(hash.into())).to_value();
        assert_eq!(differences(&of("a"), &of("b")), "trained with other settings: its task_rows differ");
        let earlier = differences(&fingerprint().to_value(), &of("b"));
        assert!(earlier.ends_with("its record does not say which task each row belongs to"), "{earlier}");
    }

    #[test]
    fn differences_name_settings_and_rows() {
        let mut other = fingerprint();
        other.settings.insert("alpha".into(), 8.0.into());
        other.rows = "other".into();
        let message = differences(&fingerprint().to_value(), &other.to_value());
        assert_eq!(message, "trained with other settings: its rows differ, alpha was 16.0 and is now 8.0");
        let mut scaled = fingerprint();
        scaled.settings.insert("use_rslora".into(), true.into());
        for (recorded, wanted, change) in [
            (&scaled, fingerprint(), "was true and is now false"),
            (&fingerprint(), scaled.clone(), "was false and is now true"),
        ] {
            let message = differences(&recorded.to_value(), &wanted.to_value());
            assert_eq!(message, format!("trained with other settings: use_rslora {change}"));
        }
        let same = differences(&fingerprint().to_value(), &fingerprint().to_value());
        assert_eq!(same, "trained with other settings: its record differs");
    }
}
