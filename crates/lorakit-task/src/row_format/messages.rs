//! Rows of `messages`, as TRL, axolotl and OpenAI's fine-tuning have them.

use serde_json::Value;

use crate::chat::conversation::{Conversation, Message};
use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;

/// `messages`, a list of objects with `role` and `content`; optionally `tools`.
pub(crate) struct Messages;

impl RowFormat for Messages {
    fn columns(&self) -> &'static str {
        "`messages`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.get("messages").is_some()
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        Ok(prompt(&conversation(columns)?))
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        answer(&conversation(columns)?)
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        Ok(RowKind::Conversation(conversation(columns)?))
    }
}

fn conversation(columns: &Columns) -> Result<Conversation> {
    // Not as numbers are written: the template receives JSON.
    let messages = columns.as_map().get("messages").ok_or_else(|| columns.missing("messages"))?;
    with_tools(Conversation::new(read(messages, "messages")?), columns)
}

/// The messages of a column.
pub(crate) fn read(value: &Value, column: &str) -> Result<Vec<Message>> {
    let Value::Array(messages) = value else {
        let found = json_value::kind(value).to_owned();
        return Err(TaskError::Value { expected: "a list of messages".to_owned(), found }.at(format!("`{column}`")));
    };
    let read = |(i, message)| Message::read(message).at(|| format!("`{column}`: message {}", i + 1));
    messages.iter().enumerate().map(read).collect()
}

/// The conversation with the row's `tools`.
pub(crate) fn with_tools(conversation: Conversation, columns: &Columns) -> Result<Conversation> {
    conversation.with_tools(columns.as_map().get("tools"))
}

/// The messages before the last reply, for display.
pub(crate) fn prompt(conversation: &Conversation) -> String {
    let before = &conversation.messages[..conversation.last_reply().unwrap_or(0)];
    before.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect()
}

/// The last reply.
pub(crate) fn answer(conversation: &Conversation) -> Result<Answer> {
    let last = conversation.last_reply().map(|last| conversation.messages[last].content.clone());
    let last = last.filter(|_| conversation.last_reply() >= Some(conversation.given));
    let reply = last.ok_or_else(|| {
        TaskError::Row(
            "the conversation has no message of the role `assistant`, so there is no reply to learn".to_owned(),
        )
    })?;
    Ok(Answer::Text(vec![reply]))
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
    fn the_answer_is_the_last_reply() {
        let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}]);
        let columns = columns(json!({"messages": messages, "tools": "[{\"name\": \"f\"}]"}));
        assert_eq!(Messages.prompt(&columns).unwrap(), "user: Hi\nassistant: Hello\nuser: 2?\n");
        assert_eq!(Messages.answer(&columns).unwrap(), Answer::Text(vec!["two".into()]));
        let RowKind::Conversation(conversation) = Messages.kind(&columns).unwrap() else { unreachable!() };
        assert_eq!((conversation.messages.len(), conversation.tools), (4, Some(json!([{"name": "f"}]))));
    }

    #[test]
    fn errors_name_the_message() {
        let error = |fields| format!("{:#}", anyhow::Error::from(Messages.answer(&columns(fields)).unwrap_err()));
        assert!(error(json!({"messages": "hi"})).contains("`messages`: expected a list of messages, found a text"));
        assert!(error(json!({"messages": [{"role": "user"}]})).contains("`messages`: message 1: expected `content`"));
        assert!(error(json!({"messages": [{"role": "user", "content": "a"}]})).contains("no reply to learn"));
    }
}
