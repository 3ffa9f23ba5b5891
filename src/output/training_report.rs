//! Reports a training run as JSON, as a table, and as the outcome of the command.

use crate::interrupt::Interrupted;
use crate::output::text_table::{ABSENT, number, table};
use anyhow::{Result, ensure};
use lorakit_fit::pluralize;
use lorakit_fit::training::{TrainedExpert, TrainingReport};
use lorakit_train::{MemoryEstimate, peak_resident_bytes};
use serde_json::{Value, json};

/// The run as JSON.
pub fn document(report: &TrainingReport) -> Value {
    let MemoryEstimate { process, base, adapters, weights, activations } = report.summary.estimate;
    let estimate = json!({
        "process": process, "base": base, "adapters": adapters, "weights": weights, "activations": activations,
    });
    let mut document = json!({
        "library": report.library,
        "run": report.run_folder(),
        "stopped": report.summary.stopped,
        "experts": report.experts,
        "memory": { "estimate": estimate, "peak": peak_resident_bytes() },
    });
    if report.part.is_some() {
        document["missing_in_other_parts"] = json!(report.summary.missing_elsewhere);
    }
    document
}

/// The run as a table.
pub fn text(report: &TrainingReport) -> String {
    let cells = |row: &TrainedExpert| {
        let (train, validation) = (number(row.train_loss, 4), number(row.validation_loss, 4));
        let (name, status) = (row.expert.clone(), row.status.to_owned());
        // The steps of an unfinished expert are in its checkpoint alone.
        let steps = if row.steps > 0 { row.steps.to_string() } else { ABSENT.to_owned() };
        vec![name, row.rows.to_string(), steps, train, validation, status]
    };
    let table =
        table(["expert", "rows", "steps", "train loss", "best validation loss", ""], report.experts.iter().map(cells));
    match (report.part, report.summary.missing_elsewhere.len()) {
        (None, _) => table,
        (Some(part), 0) => format!("{table}\n\npart {part}: the other parts are complete"),
        (Some(part), missing) => {
            let are = if missing == 1 { "is" } else { "are" };
            format!("{table}\n\npart {part}: {} of other parts {} still missing", pluralize(missing, "expert"), are)
        }
    }
}

/// The outcome of the command.
pub fn outcome(report: &TrainingReport) -> Result<()> {
    if report.summary.stopped {
        return Err(Interrupted(
            "finished experts are in the library; run the same command again to continue".to_owned(),
        )
        .into());
    }
    let refused = report.refused.iter().filter(|_| report.reports_refused());
    let failed = refused.chain(&report.summary.failed);
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
