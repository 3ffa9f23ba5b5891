//! One row of a task, before there is a tokenizer.

use serde_json::{Map, Value};

use crate::chat::conversation::Conversation;

/// One row of a task: a prompt and its answer, a conversation, or a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The position in its file, from 1.
    pub number: usize,
    /// The columns of the data file.
    pub fields: Map<String, Value>,
    /// What the row is besides its prompt and answer, for the chat template.
    pub kind: RowKind,
    /// The text that the model reads. Of a conversation, which the chat template renders, the messages before the last
    /// reply, for display; of a text nothing.
    pub prompt: String,
    /// The text between prompt and answer. None: one space, unless the prompt is empty or there is white space already; see
    /// [`Row::delimiter_before`].
    pub delimiter: Option<String>,
    /// The text that the model should write: of a conversation its last reply, of a text the whole.
    pub answer: Answer,
}

/// The kinds of rows. The set is closed.
#[derive(Clone, Debug, PartialEq)]
pub enum RowKind {
    /// A prompt and an answer, with what a chat template makes turns of.
    Plain {
        /// The instruction, for the system's turn; may be empty.
        instruction: String,
        /// What is asked, for the user's turn.
        input: String,
    },
    /// A conversation whose replies are to be learned; it has at least one.
    Conversation(Conversation),
    /// A text of which every token is to be learned.
    Text,
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
    /// A row of prompt and answer. The prompt is also the user's turn where rows go through a chat template.
    pub fn plain(number: usize, fields: Map<String, Value>, prompt: &str, delimiter: &str, answer: Answer) -> Row {
        let kind = RowKind::Plain { instruction: String::new(), input: prompt.to_owned() };
        let delimiter = Some(delimiter.to_owned());
        Row { number, fields, kind, prompt: prompt.to_owned(), delimiter, answer }
    }

    /// The text between the prompt and one of its answers: where the task gives none, one space, or nothing if the prompt is
    /// empty or ends in white space, or the answer begins with it.
    pub fn delimiter_before(&self, answer: &str) -> &str {
        let spaced = |last: char| last.is_whitespace() || answer.starts_with(char::is_whitespace);
        match &self.delimiter {
            Some(given) => given,
            None if self.prompt.chars().next_back().is_none_or(spaced) => "",
            None => " ",
        }
    }

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
