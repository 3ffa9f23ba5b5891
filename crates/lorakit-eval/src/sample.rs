//! A scored row, as the sample files store it.

use std::collections::BTreeMap;

use lorakit_task::Row;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::choice_scores::ChoiceScore;
use crate::generated_text::GeneratedText;

/// A row of a task with its scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The row's number in its file, from one.
    pub row: usize,
    /// The row's fields in its file.
    pub fields: Map<String, Value>,
    /// The prompt.
    pub prompt: String,
    /// The accepted answers.
    pub accepted: Vec<String>,
    /// The index of the correct choice, if there are choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<usize>,
    /// The choices with their scores, if they were scored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ChoiceScore>,
    /// The generated text, if the task asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    /// Whether tokens were rounded to 8 bits before they were multiplied with quantized weights.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub quantize_activations: bool,
    /// The value of every metric for this row, by name; the task's score is the mean over rows.
    pub metrics: BTreeMap<String, f64>,
}

impl Sample {
    /// A row without scores, and the text of its prompt.
    pub fn new(row: &Row, prompt: String) -> Sample {
        Sample {
            row: row.number,
            fields: row.fields.clone(),
            prompt,
            accepted: row.accepted().to_vec(),
            gold: row.choices().map(|(_, gold)| gold),
            choices: Vec::new(),
            generated: None,
            quantize_activations: false,
            metrics: BTreeMap::new(),
        }
    }
}
