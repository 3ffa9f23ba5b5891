//! One message of a row: `role` and `content`, or ShareGPT's `from` and `value`.

use serde_json::{Value, json};

use crate::chat::conversation::{ASSISTANT, Message, SYSTEM, USER};
use crate::error::{Result, TaskError};
use crate::json_value;
use crate::source::source_value::SourceValue;

/// LLaMA-Factory's name for replies that call functions.
const FUNCTION_CALL: &str = "function_call";

/// What `from` may be, in any case, with the role it stands for.
const ROLES: [(&str, &str); 14] = [
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
    ("function", "tool"),
    ("observation", "tool"),
];

/// Reads a message.
pub(crate) fn read(value: &Value) -> Result<Message> {
    let has = |key: &str| value.get(key).is_some_and(|value| !value.is_null());
    if has("from") && !has("role") {
        return read_turn(value);
    }
    let message = Message::read(value)?;
    // Other roles may be those that the template knows.
    Ok(match role_of(&message.role) {
        Some(role) if [USER, ASSISTANT].contains(&role) && message.role != FUNCTION_CALL => message.with_role(role),
        _ => message,
    })
}

fn role_of(speaker: &str) -> Option<&'static str> {
    ROLES.iter().find(|(name, _)| name.eq_ignore_ascii_case(speaker)).map(|(_, role)| *role)
}

fn read_turn(turn: &Value) -> Result<Message> {
    let field = |key: &str| match turn.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(TaskError::value(format!("a text as `{key}`"), json_value::kind(other))),
        None => {
            let found = turn.as_object().map_or_else(|| json_value::kind(turn).to_owned(), json_value::keys);
            Err(TaskError::value("an object with the texts `from` and `value`", found))
        }
    };
    let (from, value) = (field("from")?, field("value")?);
    let role = role_of(from).ok_or_else(|| TaskError::UnknownName {
        what: "role in `from`",
        name: from.to_owned(),
        known: ROLES.map(|(name, _)| name).join(", "),
    })?;
    let message = match tool_calls(value).filter(|_| from == FUNCTION_CALL) {
        Some(calls) => Message::new(role, "").with_field("tool_calls", calls),
        None => Message::new(role, value),
    };
    Ok(match turn.get("weight") {
        Some(weight) => message.with_field("weight", weight.clone()),
        None => message,
    })
}

/// The calls of a text of JSON, `{"name": ..., "arguments": ...}` or a list of these, as templates receive them; None if it
/// is something else.
fn tool_calls(text: &str) -> Option<Value> {
    let calls = match SourceValue::parse(text).ok()?.value {
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

    #[test]
    fn speakers_are_known_in_either_form() {
        for (speaker, role) in [("Human", USER), ("GPT", ASSISTANT), ("model", ASSISTANT), ("user", USER)] {
            let turn = read(&json!({"from": speaker, "value": "a"})).unwrap();
            let message = read(&json!({"role": speaker, "content": "a"})).unwrap();
            assert_eq!((&turn, turn.role.as_str()), (&message, role));
        }
        assert_eq!(read(&json!({"from": "function", "value": "7"})).unwrap().role, "tool");
        // Templates know other roles.
        assert_eq!(read(&json!({"role": "observation", "content": "7"})).unwrap().role, "observation");
    }

    #[test]
    fn errors_say_what_a_turn_has_instead() {
        let error = |value| format!("{:#}", anyhow::Error::from(read(&value).unwrap_err()));
        assert_eq!(error(json!({"from": "gpt", "value": 7})), "expected a text as `value`, found a number");
        assert_eq!(error(json!({"from": "gpt"})), "expected an object with the texts `from` and `value`, found `from`");
    }

    #[test]
    fn long_integers_of_calls_are_kept() {
        let call = r#"{"name": "f", "arguments": {"x": 10000000000000000000000}}"#;
        let message = read(&json!({"from": "function_call", "value": call})).unwrap();
        let call = &message.fields(false)["tool_calls"][0]["function"];
        assert_eq!(call["arguments"], json!({"x": "10000000000000000000000"}));
    }
}
