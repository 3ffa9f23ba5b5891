//! Rows of `conversations`, as ShareGPT, FastChat and LLaMA-Factory have them.

use serde_json::{Value, json};

use crate::chat::conversation::{ASSISTANT, Conversation, Message, SYSTEM, USER};
use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;
use crate::row_format::messages;

/// `conversations`, a list of objects with `from` and `value`; optionally `system` and `tools`.
pub(crate) struct ShareGpt;

/// LLaMA-Factory's name for replies that call functions.
const FUNCTION_CALL: &str = "function_call";

/// What `from` may be, with the role it stands for.
const ROLES: [(&str, &str); 13] = [
    ("human", USER),
    ("user", USER),
    ("gpt", ASSISTANT),
    ("chatgpt", ASSISTANT),
    ("assistant", ASSISTANT),
    ("model", ASSISTANT),
    ("bot", ASSISTANT),
    ("bing", ASSISTANT),
    ("bard", ASSISTANT),
    (FUNCTION_CALL, ASSISTANT),
    ("system", SYSTEM),
    ("tool", "tool"),
    ("observation", "tool"),
];

impl RowFormat for ShareGpt {
    fn columns(&self) -> &'static str {
        "`conversations`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.get("conversations").is_some()
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        Ok(messages::prompt(&conversation(columns)?))
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        messages::answer(&conversation(columns)?)
    }

    fn warning(&self, _: &Columns) -> Option<&'static str> {
        None
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        Ok(RowKind::Conversation(conversation(columns)?))
    }
}

fn conversation(columns: &Columns) -> Result<Conversation> {
    // Not as numbers are written: the template receives JSON.
    let value = columns.as_map().get("conversations").ok_or_else(|| columns.missing("conversations"))?;
    let Value::Array(turns) = value else {
        return Err(TaskError::value("a list of messages", json_value::kind(value)).at("`conversations`"));
    };
    let read = |(i, turn)| message(turn).at(|| format!("`conversations`: message {}", i + 1));
    let mut read = turns.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
    if let Some(Value::String(system)) = columns.get("system")
        && !system.is_empty()
        && read.first().is_none_or(|first| first.role != SYSTEM)
    {
        read.insert(0, Message::new(SYSTEM, system));
    }
    messages::with_tools(Conversation::new(read), columns)
}

fn message(turn: &Value) -> Result<Message> {
    if turn.get("role").is_some_and(|role| !role.is_null()) {
        return Message::read(turn);
    }
    let field = |key: &str| {
        turn.get(key).and_then(Value::as_str).ok_or_else(|| {
            let found = turn.as_object().map_or_else(|| json_value::kind(turn).to_owned(), json_value::keys);
            TaskError::value("an object with the texts `from` and `value`", found)
        })
    };
    let (from, value) = (field("from")?, field("value")?);
    let role = ROLES.iter().find(|(name, _)| *name == from).ok_or_else(|| TaskError::UnknownName {
        what: "role in `from`",
        name: from.to_owned(),
        known: ROLES.map(|(name, _)| name).join(", "),
    })?;
    let message = match tool_calls(value).filter(|_| from == FUNCTION_CALL) {
        Some(calls) => Message::new(role.1, "").with_field("tool_calls", calls),
        None => Message::new(role.1, value),
    };
    Ok(match turn.get("weight") {
        Some(weight) => message.with_field("weight", weight.clone()),
        None => message,
    })
}

/// The calls of a text of JSON, `{"name": ..., "arguments": ...}` or a list of these, as templates receive them; None if it
/// is something else.
fn tool_calls(text: &str) -> Option<Value> {
    let calls = match serde_json::from_str(text).ok()? {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let is_call = |call: &Value| call.get("name").is_some_and(Value::is_string) && call.get("arguments").is_some();
    let are_calls = !calls.is_empty() && calls.iter().all(is_call);
    are_calls.then(|| calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn roles(fields: Value) -> Result<Vec<(String, String)>> {
        let RowKind::Conversation(read) = ShareGpt.kind(&Columns::of(&fields))? else { unreachable!() };
        Ok(read.messages.into_iter().map(|message| (message.role, message.content)).collect())
    }

    #[test]
    fn names_of_speakers_are_roles() {
        let turns = json!([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]);
        let expected = [(USER, "Hi"), (ASSISTANT, "Hello")].map(|(role, text)| (role.to_owned(), text.to_owned()));
        assert_eq!(roles(json!({"conversations": turns})).unwrap(), expected);
        let with_system = roles(json!({"conversations": turns, "system": "Be brief."})).unwrap();
        assert_eq!((with_system.len(), with_system[0].0.as_str()), (3, SYSTEM));
        let error = |fields| format!("{:#}", anyhow::Error::from(roles(fields).unwrap_err()));
        let unknown = error(json!({"conversations": [{"from": "alien", "value": "a"}]}));
        assert!(
            unknown.contains("message 1: unknown role in `from` `alien`; expected one of human, user, gpt"),
            "{unknown}"
        );
        assert!(error(json!({"conversations": [{"from": "gpt"}]})).contains("`from` and `value`, found `from`"));
    }
}
