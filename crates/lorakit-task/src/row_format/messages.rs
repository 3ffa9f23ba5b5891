//! Rows of `messages`, as TRL, axolotl and OpenAI's fine-tuning have them.

use serde_json::Value;

use crate::chat::conversation::{Conversation, Message, SYSTEM};
use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::{KtoLabel, RowFormat};
use crate::row_format::message;
use crate::source::source_value::SourceValue;

/// `messages`, a list of objects with `role` and `content`; optionally `system` and `tools`.
pub(crate) struct Messages;

impl RowFormat for Messages {
    fn columns(&self) -> &'static str {
        "`messages`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.get("messages").is_some()
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        Ok(prompt(&conversation(columns, "messages")?))
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        answer(&conversation(columns, "messages")?)
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        Ok(RowKind::Conversation(conversation(columns, "messages")?))
    }

    fn kto_label(&self, columns: &Columns) -> Option<KtoLabel> {
        kto_label(columns)
    }
}

/// The conversation of a column, with the row's `system` and `tools`.
pub(crate) fn conversation(columns: &Columns, column: &str) -> Result<Conversation> {
    // Not as numbers are written: the template receives JSON.
    let messages = columns.as_map().get(column).ok_or_else(|| columns.missing(column))?;
    with_tools(with_system(Conversation::new(read(messages, column)?), columns), columns)
}

/// The messages of a column, a list or its JSON text.
pub(crate) fn read(value: &Value, column: &str) -> Result<Vec<Message>> {
    if let Some(list) = list_of_text(value) {
        return read(&list, column);
    }
    let Value::Array(messages) = value else {
        return Err(TaskError::value("a list of messages", json_value::kind(value)).at(format!("`{column}`")));
    };
    let read = |(i, value)| message::read(value).at(|| format!("`{column}`: message {}", i + 1));
    messages.iter().enumerate().map(read).collect()
}

fn list_of_text(value: &Value) -> Option<Value> {
    let text = value.as_str().filter(|text| text.trim_start().starts_with('['))?;
    SourceValue::parse(text).ok().map(|parsed| parsed.value).filter(Value::is_array)
}

/// The conversation with the row's `system` before it, unless it begins with a system message.
pub(crate) fn with_system(mut conversation: Conversation, columns: &Columns) -> Conversation {
    if let Some(Value::String(system)) = columns.get("system")
        && !system.is_empty()
        && conversation.messages.first().is_none_or(|first| first.role != SYSTEM)
    {
        conversation.messages.insert(0, Message::new(SYSTEM, system));
        conversation.given += usize::from(conversation.given > 0);
    }
    conversation
}

/// The label of KTO of a conversation: true or false. A number is a class.
pub(crate) fn kto_label(columns: &Columns) -> Option<KtoLabel> {
    columns.get("label").filter(|label| label.is_boolean()).and_then(KtoLabel::of)
}

/// The conversation with the row's `tools`, both without the nulls with which the file fills objects up: templates ask
/// whether a field is defined. Other nulls, such as a default value or an argument of a call, stay.
pub(crate) fn with_tools(conversation: Conversation, columns: &Columns) -> Result<Conversation> {
    let tools = columns.as_map().get("tools");
    if !columns.is_null_padded() {
        return conversation.with_tools(tools);
    }
    let tools = tools.map(json_value::without_nulls);
    // The nulls of a text of JSON are its own.
    let is_text = ["messages", "conversations"].iter().any(|name| columns.get(name).is_some_and(Value::is_string));
    let conversation = if is_text { conversation } else { conversation.without_nested_nulls() };
    conversation.with_tools(tools.as_ref())
}

/// The messages before the last reply, for display.
pub(crate) fn prompt(conversation: &Conversation) -> String {
    let before = &conversation.messages[..conversation.last_reply().unwrap_or(0)];
    before.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect()
}

/// The last reply.
pub(crate) fn answer(conversation: &Conversation) -> Result<Answer> {
    let last = conversation.last_reply().ok_or_else(|| no_reply("the conversation", &conversation.messages))?;
    Ok(Answer::Text(vec![conversation.messages[last].content.clone()]))
}

/// The error for messages without a reply.
pub(crate) fn no_reply(place: &str, messages: &[Message]) -> TaskError {
    let mut roles: Vec<String> = Vec::new();
    for message in messages {
        let role = format!("`{}`", message.role);
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let found =
        if roles.is_empty() { "there is none at all".to_owned() } else { format!("it has {}", roles.join(", ")) };
    TaskError::Row(format!("{place} has no message of the role `assistant`, so there is no reply to learn; {found}"))
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

    /// Parquet and Arrow fill the parameters of every tool up with those of the others, and so on; JSON says what it means.
    #[test]
    fn only_files_of_fixed_columns_lose_their_nulls() {
        let messages = |part: Value, arguments: Value| {
            let call = json!([{"function": {"name": "f", "arguments": arguments}}]);
            json!([{"role": "user", "content": [part]}, {"role": "assistant", "content": null, "tool_calls": call}])
        };
        let tools = |parameters: Value| json!([{"name": "f", "parameters": parameters}]);
        let part = json!({"type": "text", "text": "a", "image_url": null});
        let row = json!({"messages": messages(part, json!({"x": {"y": 1, "z": null}, "w": null})),
            "tools": tools(json!({"x": {"type": "int", "default": null}, "w": null}))});
        let filled = json!({"messages": messages(json!({"type": "text", "text": "a"}), json!({"x": {"y": 1}})),
            "tools": tools(json!({"x": {"type": "int"}}))});
        let read = |columns: &Columns| conversation(columns, "messages").unwrap();
        assert_eq!(read(&Columns::of_null_padded(&row)), read(&Columns::of(&filled)));
        assert_eq!(read(&Columns::of(&row)).tools.as_ref(), row.get("tools"));
        let reply = read(&Columns::of(&row)).messages[1].fields(true);
        assert_eq!(reply["tool_calls"], row["messages"][1]["tool_calls"]);
        // A text of JSON is as it was written.
        let text = row["tools"].to_string();
        let of_text = Columns::of_null_padded(&json!({"messages": row["messages"], "tools": text}));
        assert_eq!(read(&of_text).tools.as_ref(), row.get("tools"));
    }

    #[test]
    fn errors_name_the_message() {
        let error = |fields| format!("{:#}", anyhow::Error::from(Messages.answer(&columns(fields)).unwrap_err()));
        assert!(error(json!({"messages": "hi"})).contains("`messages`: expected a list of messages, found a text"));
        assert!(error(json!({"messages": [{"role": "user"}]})).contains("`messages`: message 1: expected `content`"));
        assert!(error(json!({"messages": [{"role": "user", "content": "a"}]})).contains("no reply to learn"));
    }
}
