//! One row of a task, as text.

use serde_json::{Map, Value};

/// One row of a task: a prompt and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The position in its file, from 1.
    pub number: usize,
    /// The columns of the data file.
    pub fields: Map<String, Value>,
    /// The text that the model reads.
    pub prompt: String,
    /// The text between prompt and answer: one space, or nothing if the prompt is empty or ends in white space, unless
    /// the task says otherwise.
    pub delimiter: String,
    /// The text that the model should write.
    pub answer: Answer,
}

/// The answer of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The accepted answers, at least one. Training uses the first.
    Text(Vec<String>),
    /// Choices of which one is right. Training uses that one.
    Choices {
        /// The choices, at least one, none of them empty.
        texts: Vec<String>,
        /// The index of the right one.
        gold: usize,
    },
}

impl Row {
    /// The answer that training uses: the first accepted one, or the right choice.
    pub fn target(&self) -> &str {
        self.accepted().first().map_or("", String::as_str)
    }

    /// The answers that count as right: all accepted ones, or the right choice.
    pub fn accepted(&self) -> &[String] {
        match &self.answer {
            Answer::Text(accepted) => accepted,
            Answer::Choices { texts, gold } => &texts[*gold..=*gold],
        }
    }

    /// The choices and the index of the right one, if the row has choices.
    pub fn choices(&self) -> Option<(&[String], usize)> {
        match &self.answer {
            Answer::Text(_) => None,
            Answer::Choices { texts, gold } => Some((texts, *gold)),
        }
    }
}
