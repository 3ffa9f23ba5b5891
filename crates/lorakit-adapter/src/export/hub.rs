//! Hugging Face repositories: a PEFT folder with a model card.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use lorakit_format::atomic;
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::adapter::Adapter;
use crate::error::Result;
use crate::library::expert_record::{ExpertRecord, TaskRecord};
use crate::library::library_store::{Library, write_expert};
use crate::library::opaque_record::OpaqueRecord;
use crate::low_rank::LowRank;
use crate::peft::peft_config::{AdapterMetadata, TaskType};

/// The part of a merge record that the model card shows.
#[derive(Deserialize)]
struct Merged {
    method: String,
    experts: Vec<MergedExpert>,
}

#[derive(Deserialize)]
struct MergedExpert {
    name: String,
    weight: Number,
}

/// An expert as a Hugging Face repository: a PEFT folder with a model card.
pub struct HubExport<'a> {
    name: &'a str,
    adapter: Adapter,
    record: Option<ExpertRecord>,
    /// The name of the base on the Hub, if it has one.
    hub_base: Option<String>,
}

impl<'a> HubExport<'a> {
    /// Reads the expert `name`. Paths of its tasks, and of those that its settings name, are reduced to file names.
    ///
    /// # Errors
    /// If the expert cannot be read.
    pub fn new(library: &Library, name: &'a str) -> Result<Self> {
        let adapter = library.adapter(name)?;
        let own = adapter.metadata().base_model.clone();
        let record = library.record(name)?;
        let hub_base = hub_base(library, record.as_ref(), own.as_deref());
        // Local paths are useless elsewhere, and private.
        let own = own.filter(|name| !name.contains(['/', '\\']));
        let metadata = AdapterMetadata { base_model: hub_base.clone().or(own), ..adapter.metadata().clone() };
        let record = record.map(without_folders).transpose()?;
        Ok(Self { name, adapter: adapter.with_metadata(metadata), record, hub_base })
    }

    /// The same export, with `name` as the base's name on the Hub.
    pub fn renamed_base(self, name: &str) -> Self {
        Self { adapter: self.adapter.renamed_base(name), hub_base: Some(name.to_owned()), ..self }
    }

    /// Creates `folder` atomically, with `license` (such as `apache-2.0`) stated in the model card.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path, license: Option<&str>) -> Result<()> {
        atomic::create_folder(folder, |folder| {
            write_expert(folder, &self.adapter, self.record.as_ref())?;
            Ok(atomic::write_file(&folder.join("README.md"), self.card(license).as_bytes())?)
        })
    }

    /// The model card: front matter for the Hub, a summary, tasks, and an example of use.
    fn card(&self, license: Option<&str>) -> String {
        let mut card = String::from("---\n");
        let mut line = |text: String| {
            card.push_str(&text);
            card.push('\n');
        };
        if let Some(base) = &self.hub_base {
            line(format!("base_model: {}\nbase_model_relation: adapter", quoted(base)));
        }
        line("library_name: peft".to_owned());
        if let Some(license) = license {
            line(format!("license: {}", quoted(license)));
        }
        let (task, _) = self.task();
        line(format!("pipeline_tag: {task}\ntags:\n- lora\n- peft\n- lorakit\n---\n"));
        line(format!("# {}\n", self.name));
        line(self.summary());
        line(self.tasks());
        line(self.usage());
        card.truncate(card.trim_end().len());
        card.push('\n');
        card
    }

    fn summary(&self) -> String {
        let range = |values: BTreeSet<String>| values.into_iter().collect::<Vec<_>>().join(", ");
        let modules = self.adapter.modules();
        let ranks = range(modules.values().map(|update| update.rank().to_string()).collect());
        let scales = range(modules.values().map(|update: &LowRank| update.scale().to_string()).collect());
        let kinds = range(modules.keys().map(|path| path.rsplit('.').next().unwrap_or(path).to_owned()).collect());
        let base = self.hub_base.as_ref().map_or_else(String::new, |base| format!(" of `{base}`"));
        format!(
            "A LoRA adapter{base}, in the format of PEFT: {} modules ({kinds}), {} parameters, rank {ranks}, scale \
             {scales}. Exported by lorakit {}.\n",
            modules.len(),
            self.adapter.parameters(),
            env!("CARGO_PKG_VERSION")
        )
    }

    /// The tasks, merge and training settings of the record.
    fn tasks(&self) -> String {
        let Some(record) = &self.record else { return String::new() };
        let mut text = String::new();
        // Writing to a String does not fail.
        if !record.tasks.is_empty() {
            text.push_str("## Tasks\n\n| task | rows | split seed |\n|---|---|---|\n");
            for task in &record.tasks {
                let _ = writeln!(text, "| {} | sha256 `{}` | {} |", cell(&task.name), task.sha256, task.split_seed);
            }
            text.push('\n');
        }
        if let Ok(Some(Merged { method, experts })) = record.settings.field("merge") {
            let _ = writeln!(text, "## Merged\n\nBy `{method}`:\n\n| expert | weight |\n|---|---|");
            for MergedExpert { name, weight } in experts {
                let _ = writeln!(text, "| {} | {weight} |", cell(&name));
            }
            text.push('\n');
        }
        if let Ok(Some(settings)) = record.settings.field::<Map<String, Value>>("settings") {
            text.push_str("## Training\n\n| setting | value |\n|---|---|\n");
            for (name, value) in settings.iter().filter(|(_, value)| !value.is_null()) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _ = writeln!(text, "| {} | {} |", cell(name), cell(&value));
            }
            let _ = writeln!(text, "| seed | {} |", record.seed);
            if let Ok(Some((_, loss))) = record.losses.field::<(usize, f64)>("best") {
                let _ = writeln!(text, "| best validation loss | {loss:.4} |");
            }
            text.push('\n');
        }
        text
    }

    /// The Hub's name of what the base does, and transformers' class of it.
    fn task(&self) -> (&'static str, &'static str) {
        match self.adapter.metadata().task_type {
            TaskType::Seq2SeqLm => ("text2text-generation", "AutoModelForSeq2SeqLM"),
            _ => ("text-generation", "AutoModelForCausalLM"),
        }
    }

    fn usage(&self) -> String {
        let (base, (_, class)) = (self.hub_base.as_deref().unwrap_or("BASE"), self.task());
        format!(
            "## Use\n\n```python\nfrom peft import PeftModel\nfrom transformers import {class}\n\nbase = \
             {class}.from_pretrained(\"{base}\")\nmodel = PeftModel.from_pretrained(base, {})\n```\n",
            quoted(self.name)
        )
    }
}

/// The record with file names in place of paths, wherever it has tasks. The hash of settings that had paths is theirs without:
/// a hash can confirm a guess.
fn without_folders(record: ExpertRecord) -> Result<ExpertRecord> {
    let all = |tasks: Vec<TaskRecord>| {
        tasks.into_iter().map(|task| TaskRecord { path: file_name(&task.path), ..task }).collect()
    };
    let mut settings: Value = record.settings.read()?;
    shorten_paths(&mut settings);
    let settings = OpaqueRecord::new(&settings)?;
    let settings_sha256 = if settings == record.settings { record.settings_sha256 } else { settings.sha256() };
    Ok(ExpertRecord { tasks: all(record.tasks), seen: all(record.seen), settings, settings_sha256, ..record })
}

/// Shortens the paths of the tasks anywhere in settings: a fitted merge has those of its fit.
fn shorten_paths(settings: &mut Value) {
    match settings {
        Value::Array(all) => all.iter_mut().for_each(shorten_paths),
        Value::Object(fields) => {
            let is_task = ["name", "sha256", "split_seed"].iter().all(|field| fields.contains_key(*field));
            if let Some(Value::String(path)) = fields.get_mut("path").filter(|_| is_task) {
                *path = file_name(path);
            }
            fields.values_mut().for_each(shorten_paths);
        }
        _ => {}
    }
}

/// The last part of a path of any system.
fn file_name(path: &str) -> String {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default().to_owned()
}

/// The name on the Hub of the base of an expert whose configuration names `own`.
///
/// The library records whether the name of its base is one of the Hub. Nothing says so of other names: those that PEFT wrote,
/// and those of libraries of earlier versions. One that reads like a repository's is taken for that, unless it is the path of
/// a folder from here, from the library or from a folder above it: a path is private.
fn hub_base(library: &Library, record: Option<&ExpertRecord>, own: Option<&str>) -> Option<String> {
    let base = library.base();
    let on_hub = base.and_then(|base| base.on_hub);
    let is_path = |name: &str| {
        let root = library.root().canonicalize().unwrap_or_else(|_| library.root().to_owned());
        Path::new(name).exists() || root.ancestors().any(|above| above.join(name).exists())
    };
    let made_here = record.is_some_and(|record| record.base_fingerprint.is_some());
    let is_of_hub = |name: &&str| {
        let recorded = match base {
            Some(base) if base.name == **name => on_hub,
            // lorakit gave it, and the library has the base under another name.
            Some(_) if made_here && on_hub.is_some() => Some(false),
            _ => None,
        };
        is_repository(name) && recorded.unwrap_or_else(|| !is_path(name))
    };
    let known = [own, base.map(|base| base.name.as_str())];
    known.into_iter().flatten().find(is_of_hub).map(str::to_owned)
}

/// Whether a name reads like a repository of the Hub, `ORG/NAME`. The Hub refuses cards that name a path as base.
fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
    };
    name.split_once('/').is_some_and(|(org, rest)| part(org) && part(rest))
}

/// Escapes a Markdown table cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// A quoted YAML string: JSON strings are valid YAML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_folder_is_its_name() {
        for path in ["data/rows/", "data/rows", "data\\rows\\", "rows"] {
            assert_eq!(file_name(path), "rows", "{path}");
        }
    }

    #[test]
    fn paths_are_not_repositories() {
        assert!(["microsoft/phi-2", "mistralai/Mistral-7B-v0.1"].into_iter().all(is_repository));
        assert!(!["pico", "/models/phi", "models/a/b", "./phi", "a/..", "a b/c"].into_iter().any(is_repository));
    }
}
