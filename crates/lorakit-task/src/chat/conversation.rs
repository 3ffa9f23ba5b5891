//! A conversation: messages with roles.

use serde_json::{Map, Value, json};

use crate::error::{At, Result, TaskError};
use crate::json_value;

/// The role of a model's replies.
pub(crate) const ASSISTANT: &str = "assistant";
/// The role of what the model replies to.
pub(crate) const USER: &str = "user";
/// The role of the instructions at the start of a conversation.
pub(crate) const SYSTEM: &str = "system";

/// The names under which data files have the reasoning of a message. The first is the one that most templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation of one or more messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// The definitions of the tools that the model may call, as the template receives them; usually none.
    pub tools: Option<Value>,
    /// How many messages, from the first, are given: their replies are not to be learned.
    pub given: usize,
    /// A text that comes before all of it: the description of few-shot prompts. Where it goes, the template decides.
    pub description: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Whose message it is: `system`, `user`, `assistant`, or another that the template knows, such as `tool`.
    pub role: String,
    /// Its text; empty for a message that only calls tools.
    pub content: String,
    /// All its fields, as data files have them, `role` and `content` among them.
    fields: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: &str, content: &str) -> Message {
        let fields = [("role", role), ("content", content)].map(|(key, text)| (key.to_owned(), Value::from(text)));
        Message { role: role.to_owned(), content: content.to_owned(), fields: Map::from_iter(fields) }
    }

    /// The same message with one more field.
    pub(crate) fn with_field(mut self, key: &str, value: Value) -> Message {
        self.fields.insert(key.to_owned(), value);
        self
    }

    /// The same message of another role.
    pub(crate) fn with_role(self, role: &str) -> Message {
        Message { role: role.to_owned(), ..self.with_field("role", role.into()) }
    }

    /// A message as data files have it: an object with `role` and `content`. The content is a text, or a list of parts of
    /// text and of `thinking`; it may be missing where the message calls tools. Fields that are null are as if missing.
    ///
    /// # Errors
    /// If a field is missing or of another kind.
    pub fn read(value: &Value) -> Result<Message> {
        let Value::Object(fields) = value else {
            return Err(TaskError::value("an object with `role` and `content`", json_value::kind(value)));
        };
        // Templates ask whether a field is defined, and files of fixed columns fill messages up with nulls.
        let given =
            fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone()));
        let fields: Map<String, Value> = given.collect();
        let role = match fields.get("role") {
            Some(Value::String(role)) => role.clone(),
            Some(other) => return Err(TaskError::value("a text as `role`", json_value::kind(other))),
            None => return Err(missing("`role`", value.get("role"), &fields)),
        };
        let content = match fields.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts.iter().map(part_text).collect::<Result<String>>().at(|| "`content`")?,
            None if fields.contains_key("tool_calls") => String::new(),
            Some(other) => return Err(TaskError::value("a text as `content`", json_value::kind(other))),
            None => return Err(missing("`content`", value.get("content"), &fields)),
        };
        Ok(Message { role, content, fields })
    }

    /// The fields, as a template receives them that takes content in parts, or one that takes text alone. As in transformers,
    /// reasoning is there under the names that templates read.
    pub(crate) fn fields(&self, in_parts: bool) -> Map<String, Value> {
        let mut fields = self.with_reasoning();
        if !in_parts && fields.get("content").is_some_and(Value::is_array) {
            fields.insert("content".to_owned(), self.content.clone().into());
        }
        fields
    }

    fn with_reasoning(&self) -> Map<String, Value> {
        let reasoning = REASONING.iter().find_map(|name| self.fields.get(*name));
        let Some(reasoning) = reasoning else { return self.fields.clone() };
        // In the order of transformers, since some templates write a message as it is.
        let mut fields = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
        fields.extend(self.fields.clone());
        fields.insert("reasoning_content".to_owned(), reasoning.clone());
        fields
    }

    /// Whether its content has parts of reasoning, which are no part of its text.
    pub(crate) fn has_thinking_parts(&self) -> bool {
        let parts = self.fields.get("content").and_then(Value::as_array);
        parts.is_some_and(|parts| parts.iter().any(|part| part["type"] == "thinking"))
    }

    /// Whether it is a reply that is not to be learned: OpenAI's format says so by a weight of 0.
    pub(crate) fn has_no_weight(&self) -> bool {
        let is_zero = |weight: &Value| match weight {
            Value::Bool(weight) => !weight,
            Value::String(weight) => weight.trim().parse() == Ok(0.0),
            weight => weight.as_f64() == Some(0.0),
        };
        self.is_reply() && self.fields.get("weight").is_some_and(is_zero)
    }

    /// Puts a line before its text.
    fn prepend(&mut self, text: &str) {
        self.content = format!("{text}\n{}", self.content);
        match self.fields.get_mut("content") {
            Some(Value::Array(parts)) => parts.insert(0, json!({"type": "text", "text": format!("{text}\n")})),
            _ => {
                self.fields.insert("content".to_owned(), self.content.clone().into());
            }
        }
    }

    /// The functions that it calls, by name.
    fn called(&self) -> impl Iterator<Item = &str> {
        let calls = self.fields.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        calls.filter_map(|call| call.get("function").unwrap_or(call).get("name")?.as_str())
    }

    /// Whether it calls functions.
    pub(crate) fn calls_functions(&self) -> bool {
        self.fields.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
    }

    /// Whether a model writes it.
    pub(crate) fn is_reply(&self) -> bool {
        self.role == ASSISTANT
    }
}

/// The error of a field that a message lacks, or that is null.
fn missing(name: &str, null: Option<&Value>, fields: &Map<String, Value>) -> TaskError {
    match null {
        Some(_) => TaskError::value(format!("a text as {name}"), "null"),
        None => TaskError::value(name, json_value::keys(fields)),
    }
}

/// The text of one part of a content list: of reasoning none.
fn part_text(part: &Value) -> Result<String> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("thinking"), _) if part.get("thinking").is_some_and(|thinking| !thinking.is_null()) => Ok(String::new()),
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some(kind), _) => Err(TaskError::value(
            "parts of text, {\"type\": \"text\", \"text\": ...}",
            format!("a part of type `{kind}`"),
        )),
        _ => Err(TaskError::value("parts of text, {\"type\": \"text\", \"text\": ...}", json_value::kind(part))),
    }
}

impl Conversation {
    /// A conversation without tools.
    pub fn new(messages: Vec<Message>) -> Conversation {
        Conversation { messages, ..Conversation::default() }
    }

    /// The conversation with the `tools` of its row, a list or its JSON text; they may be missing or null.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn with_tools(self, tools: Option<&Value>) -> Result<Conversation> {
        let tools = match tools {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => Some(serde_json::from_str(text).map_err(TaskError::from).at(|| "`tools`")?),
            Some(given) => Some(given.clone()),
        };
        Ok(Conversation { tools: tools.filter(|tools: &Value| tools != &Value::Array(Vec::new())), ..self })
    }

    /// The conversation without the null entries of objects within its messages' fields.
    pub(crate) fn without_nested_nulls(mut self) -> Conversation {
        for value in self.messages.iter_mut().flat_map(|message| message.fields.values_mut()) {
            *value = json_value::without_nulls(value);
        }
        self
    }

    /// The index of the last reply.
    pub(crate) fn last_reply(&self) -> Option<usize> {
        self.messages.iter().rposition(Message::is_reply)
    }

    /// A function that a reply to be learned calls, one without text and from the message `first` on, and that the rendered
    /// conversation leaves out: its name is not there, or `render` gives the same text without the calls.
    pub(crate) fn left_out_call<'c>(
        &'c self,
        first: usize,
        rendered: &str,
        render: impl FnOnce(&Conversation) -> Result<String>,
    ) -> Option<&'c str> {
        let without = self.without_calls(first, |message| message.content.trim().is_empty())?;
        let calls = self.messages.iter().zip(&without.messages).filter(|(with, without)| with != without);
        let names: Vec<&str> = calls.flat_map(|(message, _)| message.called()).collect();
        let absent = names.iter().find(|name| !rendered.contains(*name)).copied();
        // A template may refuse what follows a call that is not there.
        let is_same = || render(&without).is_ok_and(|text| text == rendered);
        absent.or_else(|| names.first().copied().filter(|_| is_same()))
    }

    /// Whether the rendered conversation leaves out what replies to be learned call besides their texts: `render` gives the
    /// same text without these calls.
    pub(crate) fn leaves_calls_out(
        &self,
        first: usize,
        rendered: &str,
        render: impl FnOnce(&Conversation) -> Result<String>,
    ) -> bool {
        let without = self.without_calls(first, |message| !message.content.trim().is_empty());
        without.is_some_and(|without| render(&without).is_ok_and(|text| text == rendered))
    }

    /// The conversation without the calls of some of the replies to be learned, which are from the message `first` on; None
    /// if these call nothing.
    fn without_calls(&self, first: usize, is_one: impl Fn(&Message) -> bool) -> Option<Conversation> {
        let calls = |message: &Message| message.is_reply() && !message.has_no_weight() && message.calls_functions();
        let mut without = self.clone();
        let found = without.messages.iter_mut().skip(first.max(self.given));
        let mut found = found.filter(|message| calls(message) && is_one(message)).peekable();
        found.peek()?;
        for message in found {
            message.fields.shift_remove("tool_calls");
        }
        Some(without)
    }

    /// The first `n` messages.
    pub(crate) fn prefix(&self, n: usize) -> Conversation {
        Conversation { messages: self.messages[..n].to_vec(), given: self.given.min(n), ..self.without_messages() }
    }

    fn without_messages(&self) -> Conversation {
        Conversation { tools: self.tools.clone(), description: self.description.clone(), ..Conversation::default() }
    }

    /// The conversation with its description among the messages: before its system message's text, else as a system message
    /// or, for a template that takes none, before the text of the user's first message.
    pub(crate) fn described(&self, takes_system: bool) -> Conversation {
        let mut described = self.clone();
        let Some(text) = described.description.take() else { return described };
        let place = |role: &str| self.messages.iter().position(|message| message.role == role);
        match place(SYSTEM).or_else(|| place(USER).filter(|_| !takes_system)) {
            Some(at) => described.messages[at].prepend(&text),
            None => {
                described.messages.insert(0, Message::new(if takes_system { SYSTEM } else { USER }, &text));
                described.given += 1;
            }
        }
        described
    }

    /// The conversation with the turns of others before its own, after its system messages. Their replies are not learned.
    pub(crate) fn after<'e>(&self, others: impl Iterator<Item = &'e Conversation>) -> Conversation {
        let start = self.messages.iter().position(|message| message.role != SYSTEM).unwrap_or(0);
        let turns = others.flat_map(|other| other.messages.iter().filter(|message| message.role != SYSTEM).cloned());
        let turns: Vec<Message> = turns.collect();
        let given = if turns.is_empty() { self.given } else { self.given.max(start) + turns.len() };
        let mut messages = self.messages.clone();
        messages.splice(start..start, turns);
        Conversation { messages, given, ..self.clone() }
    }

    /// How many turns can be left out.
    pub(crate) fn droppable_turns(&self) -> usize {
        let mut rest = self.clone();
        std::iter::from_fn(|| rest.drop_oldest_turn()).count()
    }

    /// The conversation without this many of its oldest turns.
    pub(crate) fn without_oldest_turns(&self, turns: usize) -> Conversation {
        let mut rest = self.clone();
        for _ in 0..turns {
            rest.drop_oldest_turn();
        }
        rest
    }

    /// Without its oldest turn, system messages aside: up to the next message of the user that a reply still follows.
    /// Returns how many messages are gone; None where the last turn is all there is.
    fn drop_oldest_turn(&mut self) -> Option<usize> {
        let start = self.messages.iter().position(|message| message.role != SYSTEM)?;
        let last = self.last_reply()?;
        let next = (start + 1..last).find(|&i| self.messages[i].role == USER)?;
        self.messages.drain(start..next);
        self.given = self.given.saturating_sub(next - start).max(start.min(self.given));
        Some(next - start)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_keeps_all_its_fields_and_its_parts_of_text_are_joined() {
        let message = json!({"role": "assistant", "content": "4", "reasoning_content": "2 + 2"});
        let read = Message::read(&message).unwrap();
        assert_eq!((read.role.as_str(), read.content.as_str()), ("assistant", "4"));
        let mut named = message.clone();
        named["thinking"] = json!("2 + 2");
        assert_eq!(Value::Object(read.fields(false)), named);
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        let read = Message::read(&parts).unwrap();
        assert_eq!(read.content, "ab");
        assert_eq!(Value::Object(read.fields(true)), parts);
        assert_eq!(Value::Object(read.fields(false)), json!({"role": "user", "content": "ab"}));
        let filled = json!({"role": "user", "content": "a", "name": null});
        assert_eq!(
            Value::Object(Message::read(&filled).unwrap().fields(true)),
            json!({"role": "user", "content": "a"})
        );
        let call = json!({"role": "assistant", "content": null, "tool_calls": []});
        let read = Message::read(&call).unwrap();
        assert_eq!(read.content, "");
        assert_eq!(Value::Object(read.fields(true)), json!({"role": "assistant", "tool_calls": []}));
    }

    /// Each printed by transformers 5.23 with the template `{{ messages[0] | tojson }}`.
    #[test]
    fn reasoning_has_the_names_that_templates_read() {
        for (given, expected) in [
            (
                r#"{"role":"assistant","content":"4","thinking":"t"}"#,
                r#"{"thinking":"t","role":"assistant","content":"4","reasoning_content":"t"}"#,
            ),
            (
                r#"{"role":"assistant","reasoning":"r","content":"4"}"#,
                r#"{"thinking":"r","role":"assistant","reasoning":"r","content":"4","reasoning_content":"r"}"#,
            ),
            (
                r#"{"role":"assistant","reasoning_content":null,"thinking":"t","reasoning":"r","content":"4"}"#,
                r#"{"thinking":"t","role":"assistant","reasoning":"r","content":"4","reasoning_content":"t"}"#,
            ),
            (
                r#"{"role":"assistant","reasoning_content":"c","thinking":"t","content":"4"}"#,
                r#"{"thinking":"t","role":"assistant","reasoning_content":"c","content":"4"}"#,
            ),
        ] {
            let message = Message::read(&serde_json::from_str(given).unwrap()).unwrap();
            assert_eq!(Value::Object(message.fields(true)).to_string(), expected);
        }
    }

    #[test]
    fn errors_say_what_a_message_lacks() {
        let error = |value| format!("{:#}", anyhow::Error::from(Message::read(&value).unwrap_err()));
        assert_eq!(error(json!("hi")), "expected an object with `role` and `content`, found a text");
        assert_eq!(error(json!({"from": "human"})), "expected `role`, found `from`");
        assert_eq!(error(json!({"role": "user"})), "expected `content`, found `role`");
        assert_eq!(error(json!({"role": "user", "content": null})), "expected a text as `content`, found null");
        let image = json!({"role": "user", "content": [{"type": "image", "url": "x"}]});
        assert!(error(image).contains("a part of type `image`"));
    }

    #[test]
    fn the_oldest_turn_goes_first_and_the_system_message_stays() {
        let roles = [SYSTEM, USER, ASSISTANT, USER, "tool", ASSISTANT, USER, ASSISTANT];
        let mut conversation = Conversation::new(roles.iter().map(|role| Message::new(role, role)).collect());
        assert_eq!(conversation.drop_oldest_turn(), Some(2));
        assert_eq!(conversation.drop_oldest_turn(), Some(3));
        assert_eq!(conversation.drop_oldest_turn(), None);
        let left: Vec<&str> = conversation.messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(left, [SYSTEM, USER, ASSISTANT]);
    }
}
