//! Reports a training run as JSON, as a table, and as the outcome of the command.

use crate::interrupt::Interrupted;
use crate::output::text_table::{number, table};
use anyhow::{Result, ensure};
use lorakit_fit::pluralize;
use lorakit_fit::training::{TrainedExpert, TrainingReport};
use serde_json::{Value, json};

/// The run as JSON.
pub fn document(report: &TrainingReport) -> Value {
    json!({
        "library": report.library,
        "run": report.run_folder(),
        "stopped": report.summary.stopped,
        "experts": report.experts,
    })
}

/// The run as a table.
pub fn text(report: &TrainingReport) -> String {
    let cells = |row: &TrainedExpert| {
        let (train, validation) = (number(row.train_loss, 4), number(row.validation_loss, 4));
        let (name, status) = (row.expert.clone(), row.status.to_owned());
        vec![name, row.rows.to_string(), row.steps.to_string(), train, validation, status]
    };
    table(["expert", "rows", "steps", "train loss", "best validation loss", ""], report.experts.iter().map(cells))
}

/// The outcome of the command.
pub fn outcome(report: &TrainingReport) -> Result<()> {
    if report.summary.stopped {
        return Err(Interrupted(
            "finished experts are in the library; run the same command again to continue".to_owned(),
        )
        .into());
    }
    let failed = report.refused.iter().chain(&report.summary.failed);
    let failed: Vec<String> = failed.map(|(name, why)| format!("`{name}`: {why}")).collect();
    // Retraining does not help where rows are missing.
    let again = if report.summary.failed.is_empty() { "" } else { "; --restart retrains the failed ones" };
    ensure!(
        failed.is_empty(),
        "{} failed, the finished ones are in the library: {}{again}",
        pluralize(failed.len(), "expert"),
        failed.join("; ")
    );
    Ok(())
}
