//! One question of a task, with its answer, as text.

use serde_json::{Map, Value};

/// One row of a task: what is asked and what answers it, as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The row's place in its file, from 1.
    pub number: usize,
    /// The row as its file has it.
    pub fields: Map<String, Value>,
    /// What the model reads.
    pub prompt: String,
    /// What stands between the prompt and every answer: one space, or nothing where the prompt is
    /// empty or ends in white space, unless the task says otherwise.
    pub delimiter: String,
    /// What the model is to write.
    pub answer: Answer,
}

/// What answers a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Accepted answers, at least one. Training uses the first.
    Text(Vec<String>),
    /// Choices, at least one, of which one is right. Training uses that one.
    Choices {
        /// The choices' texts, none of them empty.
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

    /// The answers that count as right: all accepted ones, or the right choice alone.
    pub fn accepted(&self) -> &[String] {
        match &self.answer {
            Answer::Text(accepted) => accepted,
            Answer::Choices { texts, gold } => &texts[*gold..=*gold],
        }
    }

    /// The choices and the index of the right one, where the row has choices.
    pub fn choices(&self) -> Option<(&[String], usize)> {
        match &self.answer {
            Answer::Text(_) => None,
            Answer::Choices { texts, gold } => Some((texts, *gold)),
        }
    }
}
