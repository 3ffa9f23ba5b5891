//! Rows of `prompt` and `completion`, as TRL has them: texts, or lists of messages.

use serde_json::Value;

use crate::chat::conversation::Conversation;
use crate::error::{Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::{KtoLabel, RowFormat};
use crate::row_format::messages;

/// `prompt` and `completion`. Texts follow each other as they are; of messages only the completion's are learned.
pub(crate) struct PromptCompletion;

impl RowFormat for PromptCompletion {
    fn columns(&self) -> &'static str {
        "`prompt` and `completion`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.get("prompt").is_some() && columns.get("completion").is_some()
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        Ok(Pair::read(columns, "completion")?.prompt())
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        Pair::read(columns, "completion")?.answer("completion")
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        Pair::read(columns, "completion")?.kind(columns)
    }

    fn delimiter(&self) -> Option<&'static str> {
        Some("")
    }

    fn kto_label(&self, columns: &Columns) -> Option<KtoLabel> {
        columns.get("label").and_then(KtoLabel::of)
    }
}

/// A prompt and what follows it.
pub(crate) enum Pair {
    Texts(String, String),
    Messages(Conversation),
}

impl Pair {
    /// Reads `prompt` and the column that follows it, both of one kind.
    pub fn read(columns: &Columns, following: &str) -> Result<Pair> {
        let (prompt, next) = (columns.require("prompt")?, columns.require(following)?);
        match (prompt, next) {
            (Value::String(prompt), Value::String(next)) => Ok(Pair::Texts(prompt.clone(), next.clone())),
            (Value::Array(_), Value::Array(_)) => {
                let mut all = messages::read(prompt, "prompt")?;
                let given = all.len();
                all.extend(messages::read(next, following)?);
                let conversation = Conversation { given, ..Conversation::new(all) };
                Ok(Pair::Messages(messages::with_system(conversation, columns)))
            }
            _ => Err(TaskError::Row(format!(
                "`prompt` is {} and `{following}` is {}; expected two texts, or two lists of messages",
                json_value::kind(prompt),
                json_value::kind(next)
            ))),
        }
    }

    pub fn prompt(&self) -> String {
        match self {
            Pair::Texts(prompt, _) => prompt.clone(),
            Pair::Messages(conversation) => messages::prompt(conversation),
        }
    }

    /// What is learned of the column `following`: its text or its last reply. A reply of the prompt is none.
    pub fn answer(&self, following: &str) -> Result<Answer> {
        match self {
            Pair::Texts(_, next) => Ok(Answer::Text(vec![next.clone()])),
            Pair::Messages(conversation) if conversation.last_reply().is_some_and(|last| last < conversation.given) => {
                Err(messages::no_reply(&format!("`{following}`"), &conversation.messages[conversation.given..]))
            }
            Pair::Messages(conversation) => messages::answer(conversation),
        }
    }

    pub fn kind(self, columns: &Columns) -> Result<RowKind> {
        Ok(match self {
            Pair::Texts(prompt, _) => RowKind::Plain { instruction: String::new(), input: prompt },
            Pair::Messages(conversation) => RowKind::Conversation(messages::with_tools(conversation, columns)?),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn columns(fields: Value) -> Columns {
        Columns::of(&fields)
    }

    #[test]
    fn texts_are_a_plain_row_and_messages_a_conversation() {
        let texts = columns(json!({"prompt": "2 + 2 =", "completion": " 4"}));
        assert_eq!(PromptCompletion.prompt(&texts).unwrap(), "2 + 2 =");
        assert_eq!(PromptCompletion.answer(&texts).unwrap(), Answer::Text(vec![" 4".into()]));
        let message = |role: &str, content: &str| json!([{"role": role, "content": content}]);
        let chat = columns(json!({"prompt": message("user", "2 + 2?"), "completion": message("assistant", "4")}));
        let RowKind::Conversation(read) = PromptCompletion.kind(&chat).unwrap() else { unreachable!() };
        assert_eq!((read.messages.len(), read.given), (2, 1));
        let mixed = columns(json!({"prompt": "a", "completion": message("assistant", "4")}));
        let error = PromptCompletion.prompt(&mixed).unwrap_err().to_string();
        assert!(error.starts_with("`prompt` is a text and `completion` is a list"), "{error}");
    }

    #[test]
    fn a_reply_of_the_prompt_is_none_of_the_completion() {
        let message = |role: &str| json!({"role": role, "content": "a"});
        let error = |prompt: Value| {
            let columns = columns(json!({"prompt": prompt, "completion": [message("user")]}));
            PromptCompletion.answer(&columns).unwrap_err().to_string()
        };
        let replied = error(json!([message("user"), message("assistant")]));
        assert!(replied.starts_with("`completion` has no message of the role `assistant`"), "{replied}");
        assert!(error(json!([message("user")])).starts_with("the conversation has no message of the role `assistant`"));
    }
}
