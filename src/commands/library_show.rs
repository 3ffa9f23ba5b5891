//! `library show`: shows details of experts.

use crate::args::expert_names::ExpertNames;
use crate::command_context::CommandContext;
use crate::output::text_table::{ABSENT, bytes, number, table};
use anyhow::Result;
use lorakit_adapter::{Adapter, ExpertRecord, Library, LowRank};
use lorakit_train::LossHistory;
use serde_json::{Map, Value, json};

/// An expert with its record.
struct Entry {
    name: String,
    adapter: Adapter,
    record: Option<ExpertRecord>,
}

impl Entry {
    fn of(library: &Library, name: String) -> Result<Self> {
        Ok(Self { adapter: library.adapter(&name)?, record: library.record(&name)?, name })
    }

    /// The step with the lowest validation loss, and that loss.
    fn best(&self) -> Option<(usize, f64)> {
        LossHistory::best_of(self.record.as_ref()?)
    }
}

/// Shows the experts.
pub fn run(args: &ExpertNames, context: &CommandContext) -> Result<()> {
    let library = Library::open(&args.library)?;
    let entries = args.names.iter().map(|name| Entry::of(&library, name.clone())).collect::<Result<Vec<_>>>()?;
    let documents = entries.iter().map(|entry| document(entry, &library)).collect::<Result<Vec<_>>>()?;
    context
        .output
        .result(&json!({ "experts": documents }), || entries.iter().map(text).collect::<Vec<_>>().join("\n\n"))
}

fn document(entry: &Entry, library: &Library) -> Result<Value> {
    let module = |(path, update): (&String, &LowRank)| {
        json!({
            "module": path,
            "rank": update.rank(),
            "scale": update.scale(),
            "input": update.input(),
            "output": update.output(),
            "norm": update.norm(),
        })
    };
    Ok(json!({
        "name": entry.name,
        "parameters": entry.adapter.parameters(),
        "norm": entry.adapter.norm(),
        "validation_loss": entry.best().map(|(_, loss)| loss),
        "sha256": library.weights_sha256(&entry.name)?,
        "modules": entry.adapter.modules().iter().map(module).collect::<Vec<_>>(),
        "record": entry.record,
    }))
}

fn text(entry: &Entry) -> String {
    let fact = |name: &str, value: String| vec![name.to_owned(), value];
    let mut facts = vec![
        fact(
            "parameters",
            format!("{} ({})", entry.adapter.parameters(), bytes(4 * entry.adapter.parameters() as u64)),
        ),
        fact("norm", format!("{:.4}", entry.adapter.norm())),
        fact("base model", entry.adapter.metadata().base_model.clone().unwrap_or_else(|| ABSENT.to_owned())),
    ];
    if let Some(record) = &entry.record {
        facts.extend(
            record
                .tasks
                .iter()
                .map(|task| fact("task", format!("{} ({}, split_seed {})", task.name, task.path, task.split_seed))),
        );
        // A merged adapter has no losses.
        if let Some((step, loss)) = entry.best() {
            let loss = number(Some(loss), 4);
            facts.push(fact("best validation loss", format!("{loss} at step {step}")));
        }
        facts.push(fact("tokens", record.tokens.to_string()));
        facts.push(fact("seed", record.seed.to_string()));
        let settings: Option<Map<String, Value>> = record.settings.field("settings").ok().flatten();
        // What is null is not set: the command's help says what then holds.
        let settings = settings.iter().flatten().filter(|(_, value)| !value.is_null());
        facts.extend(
            settings.map(|(name, value)| fact(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
        );
    }
    let modules = entry.adapter.modules().iter().map(|(path, update)| {
        vec![
            path.clone(),
            update.rank().to_string(),
            update.scale().to_string(),
            update.input().to_string(),
            update.output().to_string(),
            format!("{:.4}", update.norm()),
        ]
    });
    format!(
        "{}\n\n{}",
        table([entry.name.as_str(), ""], facts),
        table(["module", "rank", "scale", "input", "output", "norm"], modules)
    )
}
