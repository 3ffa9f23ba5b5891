//! One scored row, as the sample files hold it.

use std::collections::BTreeMap;

use lorakit_task::Row;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::generation::GeneratedText;
use crate::multiple_choice::ChoiceScore;

/// A row of a task with all that was found about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The row's place in its file, from 1.
    pub row: usize,
    /// The row as its file has it.
    pub fields: Map<String, Value>,
    /// What the model read.
    pub prompt: String,
    /// The answers that count as right.
    pub accepted: Vec<String>,
    /// The index of the right choice, where there are choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<usize>,
    /// The choices, where they were scored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ChoiceScore>,
    /// What the model wrote, where it was asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    /// Every metric's value for this row, by name; the task's score is their mean over rows.
    pub metrics: BTreeMap<String, f64>,
}

impl Sample {
    /// A row about which nothing is known yet.
    pub(crate) fn new(row: &Row) -> Sample {
        Sample {
            row: row.number,
            fields: row.fields.clone(),
            prompt: row.prompt.clone(),
            accepted: row.accepted().to_vec(),
            gold: row.choices().map(|(_, gold)| gold),
            choices: Vec::new(),
            generated: None,
            metrics: BTreeMap::new(),
        }
    }
}
