//! `library export`: exports experts as Hugging Face repositories.

use crate::args::usage;
use crate::command_context::Context;
use crate::output::text_table::table;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_adapter::{Adapter, AdapterMetadata, ExpertRecord, Library, LowRank, TaskRecord, write_expert};
use lorakit_format::atomic::create_folder;
use lorakit_train::LossHistory;
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What a model card says of a merge.
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

/// The arguments of `library export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Library
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Output folder, with one repository folder per expert
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// License for the model cards, such as apache-2.0
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Export only these experts [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Writes all repositories, each atomically.
pub fn run(args: &ExportArgs, context: &Context) -> Result<()> {
    let library = Library::open(&args.library)?;
    usage::ensure(!is_within(&args.out, library.root()), || {
        format!("{}: --out is inside the library {}", args.out.display(), args.library.display())
    })?;
    let names = if args.names.is_empty() { library.expert_names()? } else { args.names.clone() };
    ensure!(!names.is_empty(), "{}: the library has no experts", args.library.display());
    // Missing experts and existing folders are reported before anything is written.
    for name in &names {
        library.expert_folder(name)?;
        let place = args.out.join(name);
        let free = std::fs::read_dir(&place).map_or(!place.exists(), |mut entries| entries.next().is_none());
        ensure!(free, "{}: not empty; move it, or use another --out", place.display());
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot be created", args.out.display()))?;
    let mut exported = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let folder = args.out.join(name);
        let expert = Exported::of(&library, name)?;
        create_folder(&folder, |folder| expert.write(folder, args.license.as_deref()))?;
        exported.push((name.clone(), folder));
    }
    let documents: Vec<Value> =
        exported.iter().map(|(name, folder)| json!({ "name": name, "folder": folder })).collect();
    context.output.result(&json!({ "out": args.out, "exported": documents }), || {
        let lines = exported.iter().map(|(name, folder)| vec![name.clone(), folder.display().to_string()]);
        table(["exported", "to"], lines)
    })
}

/// Whether a path, which need not exist, is `folder` or inside it.
fn is_within(place: &Path, folder: &Path) -> bool {
    let known = place.ancestors().find_map(|above| match above.as_os_str().is_empty() {
        true => Path::new(".").canonicalize().ok(),
        false => above.canonicalize().ok(),
    });
    matches!((known, folder.canonicalize()), (Some(known), Ok(folder)) if known.starts_with(&folder))
}

/// An expert on its way out.
struct Exported<'a> {
    name: &'a str,
    adapter: Adapter,
    record: Option<ExpertRecord>,
    /// The base as the hub knows it, where it does.
    hub_base: Option<String>,
}

impl<'a> Exported<'a> {
    fn of(library: &Library, name: &'a str) -> Result<Self> {
        let adapter = library.adapter(name)?;
        let own = adapter.metadata().base_model.clone();
        let mut known = [own.clone(), library.base().map(|base| base.name.clone())].into_iter().flatten();
        let hub_base = known.find(|base| is_repository(base));
        let facts = AdapterMetadata { base_model: hub_base.clone().or(own), ..adapter.metadata().clone() };
        // Where the rows lay is of no use elsewhere, and nobody's business.
        let shortened = |task: TaskRecord| {
            let file = Path::new(&task.path).file_name().map(|file| file.to_string_lossy().into_owned());
            TaskRecord { path: file.unwrap_or_default(), ..task }
        };
        let record = library.record(name)?.map(|record| {
            let all = |tasks: &[TaskRecord]| tasks.iter().cloned().map(shortened).collect();
            ExpertRecord { tasks: all(&record.tasks), seen: all(&record.seen), ..record }
        });
        Ok(Self { name, adapter: adapter.with_metadata(facts), record, hub_base })
    }

    fn write(&self, folder: &Path, license: Option<&str>) -> Result<()> {
        write_expert(folder, &self.adapter, self.record.as_ref())?;
        std::fs::write(folder.join("README.md"), self.card(license))?;
        Ok(())
    }

    /// README.md: front matter as the hub reads it, then what the expert is and how it is loaded.
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
        line("pipeline_tag: text-generation\ntags:\n- lora\n- peft\n- lorakit\n---\n".to_owned());
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

    /// What the expert was trained on, or merged of, with what is recorded of it.
    fn tasks(&self) -> String {
        let Some(record) = &self.record else { return String::new() };
        let mut text = String::new();
        // Writing to a text cannot fail.
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
            for (name, value) in &settings {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _ = writeln!(text, "| {} | {} |", cell(name), cell(&value));
            }
            let _ = writeln!(text, "| seed | {} |", record.seed);
            if let Some((_, loss)) = LossHistory::best_of(record) {
                let _ = writeln!(text, "| best validation loss | {loss:.4} |");
            }
            text.push('\n');
        }
        text
    }

    fn usage(&self) -> String {
        let base = self.hub_base.as_deref().unwrap_or("BASE");
        format!(
            "## Use\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\nbase = \
             AutoModelForCausalLM.from_pretrained(\"{base}\")\nmodel = PeftModel.from_pretrained(base, {})\n```\n",
            quoted(self.name)
        )
    }
}

/// Whether a name can be that of a repository of the hub: `ORG/NAME`. Paths and names of bases inside lorakit are
/// none, and the hub refuses cards that state them.
fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
    };
    name.split_once('/').is_some_and(|(org, rest)| part(org) && part(rest)) && !Path::new(name).exists()
}

/// A text within a table: names may hold what would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// A text as YAML reads it: JSON's texts are YAML's.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repositories_of_the_hub_are_bases_of_a_card() {
        assert!(["microsoft/phi-2", "mistralai/Mistral-7B-v0.1"].into_iter().all(is_repository));
        assert!(
            !["pico", "/models/phi", "models/a/b", "./phi", "a/..", "a b/c", "src/cli.rs"]
                .into_iter()
                .any(is_repository)
        );
    }
}
