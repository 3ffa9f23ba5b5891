//! `library ls`: lists the experts of a library. Reads configs and records, not weights.

use crate::command_context::CommandContext;
use crate::output::text_table::{ABSENT, bytes, number, table};
use anyhow::Result;
use clap::Args;
use lorakit_adapter::{CONFIG_FILE, ExpertRecord, Library, PeftConfig, WEIGHTS_FILE};
use lorakit_train::LossHistory;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Tasks listed per expert; the others are counted.
const TASKS_LISTED: usize = 4;

/// The arguments of `library ls`.
#[derive(Args, Debug)]
pub struct LibraryLsArgs {
    /// Library
    #[arg(long, value_name = "L")]
    library: PathBuf,
}

/// An expert of the list. A damaged one does not keep the others from being listed.
struct Entry {
    name: String,
    described: Result<Described>,
}

struct Described {
    config: PeftConfig,
    bytes: u64,
    record: Option<ListedRecord>,
}

/// The fields of a record that are listed.
#[derive(Deserialize)]
struct ListedRecord {
    tasks: Vec<ListedTask>,
    #[serde(default)]
    losses: Option<ListedLosses>,
}

#[derive(Deserialize)]
struct ListedTask {
    name: String,
}

/// The part of [`LossHistory`] that is listed.
#[derive(Deserialize)]
struct ListedLosses {
    #[serde(default)]
    best: Option<(usize, Option<f64>)>,
}

impl ListedRecord {
    /// Reads a record without the losses of every step, which would take most of the time. What was not trained has losses
    /// of another form.
    fn read(library: &Library, name: &str) -> Result<Option<Self>> {
        if let Ok(record) = library.record_as(name) {
            return Ok(record);
        }
        let of = |record: ExpertRecord| {
            let best = LossHistory::best_of(&record).map(|(step, loss)| (step, Some(loss)));
            let tasks = record.tasks.into_iter().map(|task| ListedTask { name: task.name }).collect();
            Self { tasks, losses: Some(ListedLosses { best }) }
        };
        Ok(library.record(name)?.map(of))
    }
}

/// Lists the experts.
pub fn run(args: &LibraryLsArgs, context: &CommandContext) -> Result<()> {
    let library = Library::open(&args.library)?;
    let entry = |name: String| Entry { described: Described::read(&library, &name), name };
    let entries: Vec<Entry> = library.expert_names()?.into_iter().map(entry).collect();
    let experts: Vec<Value> = entries.iter().map(Entry::document).collect();
    let models = library.model_names()?;
    let document = json!({ "library": library.name(), "base": library.base(), "experts": experts, "models": models });
    context.output.result(&document, || {
        let base = library
            .base()
            .map_or_else(|| "an unknown base".to_owned(), |base| format!("{} ({})", base.name, base.architecture));
        let header = ["expert", "rank", "alpha", "size", "best validation loss", "tasks"];
        let experts = table(header, entries.iter().map(Entry::line));
        let folder =
            |name: &String| format!("\nmodel {name}: --base {}", library.root().join("models").join(name).display());
        format!("{} for {base}\n{experts}{}", library.name(), models.iter().map(folder).collect::<String>())
    })
}

impl Entry {
    fn document(&self) -> Value {
        match &self.described {
            Err(error) => json!({ "name": self.name, "error": format!("{error:#}") }),
            Ok(described) => json!({
                "name": self.name,
                "rank": described.config.rank,
                "alpha": described.config.alpha,
                "bytes": described.bytes,
                "tasks": described.tasks(),
                "validation_loss": described.validation_loss(),
            }),
        }
    }

    fn line(&self) -> Vec<String> {
        let cells = match &self.described {
            Err(_) => {
                let absent = ABSENT.to_owned();
                [absent.clone(), absent.clone(), absent.clone(), absent, "damaged; see `library check`".to_owned()]
            }
            Ok(described) => [
                described.config.rank.to_string(),
                described.config.alpha.to_string(),
                bytes(described.bytes),
                number(described.validation_loss(), 4),
                shortened(&described.tasks()),
            ],
        };
        std::iter::once(self.name.clone()).chain(cells).collect()
    }
}

impl Described {
    fn read(library: &Library, name: &str) -> Result<Self> {
        let folder = library.expert_folder(name)?;
        Ok(Self {
            config: PeftConfig::read(&folder.join(CONFIG_FILE))?,
            bytes: std::fs::metadata(folder.join(WEIGHTS_FILE))?.len(),
            record: ListedRecord::read(library, name)?,
        })
    }

    fn tasks(&self) -> Vec<&str> {
        self.record.iter().flat_map(|record| &record.tasks).map(|task| task.name.as_str()).collect()
    }

    fn validation_loss(&self) -> Option<f64> {
        self.record.as_ref()?.losses.as_ref()?.best?.1
    }
}

fn shortened(tasks: &[&str]) -> String {
    match tasks.len().checked_sub(TASKS_LISTED) {
        None | Some(0) => tasks.join(", "),
        Some(more) => format!("{} and {more} more", tasks[..TASKS_LISTED].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_tasks_are_counted() {
        assert_eq!(shortened(&["a", "b", "c", "d"]), "a, b, c, d");
        assert_eq!(shortened(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d and 2 more");
    }
}
