//! Prompts, from the command line, stdin or a file.

use anyhow::{Context as _, Result, bail, ensure};
use lorakit_task::{Conversation, Example, JsonLine, Message, Tokenizer, read_json_lines};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;

/// A prompt with the fields of its row.
#[derive(Clone, Debug)]
pub struct PromptRow {
    /// Where it is, for messages.
    pub place: String,
    /// The fields of its row, the prompt among them.
    pub fields: Map<String, Value>,
    /// The row as its file has it, if it has numbers that [`Value`] would write otherwise.
    pub written: Option<String>,
    /// The prompt.
    pub prompt: Prompt,
}

/// What text is generated for.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text, which is continued.
    Text(String),
    /// Messages, and tools if there are any, which the base's chat template renders for the reply to them.
    Chat(Conversation),
}

impl PromptRow {
    /// The prompt as typed, or from stdin for `-`.
    pub fn typed(text: &str) -> Result<Self> {
        let mut prompt = text.to_owned();
        if text == "-" {
            prompt.clear();
            std::io::stdin().read_to_string(&mut prompt).context("cannot read the prompt from stdin")?;
        }
        Ok(Self::of_text(&prompt))
    }

    /// A prompt of this text.
    pub fn of_text(text: &str) -> Self {
        let fields = Map::from_iter([("prompt".to_owned(), json!(text))]);
        Self { place: "the prompt".to_owned(), fields, written: None, prompt: Prompt::Text(text.to_owned()) }
    }

    /// The rows of a file of JSON lines, gzipped or not, at least one.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let lines = read_json_lines(path)?;
        ensure!(!lines.is_empty(), "{}: no rows; expected a JSON object a line, with a `prompt`", path.display());
        let read = |line: JsonLine| {
            let place = format!("{}:{}", path.display(), line.number);
            Self::of_line(line, &place).with_context(|| place)
        };
        lines.into_iter().map(read).collect()
    }

    fn of_line(line: JsonLine, place: &str) -> Result<Self> {
        let Value::Object(fields) = line.value else {
            bail!("expected a JSON object, such as {{\"prompt\": \"...\"}}")
        };
        let given = |name: &&&str| fields.get(**name).is_some_and(|value| !value.is_null());
        let name = ["messages", "prompt"].iter().find(given);
        let Some((name, value)) = name.and_then(|name| fields.get_key_value(*name)) else {
            let found: Vec<&str> = fields.keys().map(String::as_str).collect();
            bail!(
                "expected a field `prompt` or `messages`, found {}",
                if found.is_empty() { "none".into() } else { found.join(", ") }
            )
        };
        let prompt = match value {
            Value::String(text) if name == "prompt" => Prompt::Text(text.clone()),
            Value::Array(messages) => {
                let messages = read_messages(messages).with_context(|| format!("`{name}`"))?;
                Prompt::Chat(Conversation::new(messages).with_tools(fields.get("tools"))?)
            }
            _ if name == "prompt" => bail!("`prompt` is {value}; expected a text, or a list of messages"),
            _ => bail!("`messages` is {value}; expected a list of messages"),
        };
        Ok(Self { place: place.to_owned(), fields, written: line.written, prompt })
    }

    /// The prompt as a user's message, after a system message if one is given.
    pub fn into_chat(self, system: Option<&str>) -> Result<Self> {
        let mut conversation = match self.prompt {
            Prompt::Text(text) => Conversation::new(vec![Message::new("user", &text)]),
            Prompt::Chat(conversation) => conversation,
        };
        let messages = &mut conversation.messages;
        if let Some(system) = system {
            ensure!(
                messages.iter().all(|message| message.role != "system"),
                "{}: it has a system message of its own; leave out --system or that message",
                self.place
            );
            messages.insert(0, Message::new("system", system));
        }
        Ok(Self { prompt: Prompt::Chat(conversation), ..self })
    }

    /// Whether it goes through the chat template.
    pub fn is_chat(&self) -> bool {
        matches!(self.prompt, Prompt::Chat(_))
    }

    /// The prompt's tokens, cut from the left to at most `max_length`.
    pub fn tokens(&self, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<u32>> {
        match &self.prompt {
            Prompt::Text(text) => Example::encode_prompt(text, tokenizer, max_length),
            Prompt::Chat(conversation) => Example::encode_chat_prompt(conversation, tokenizer, max_length),
        }
        .with_context(|| self.place.clone())
    }
}

/// Messages that a reply is generated to, at least one.
fn read_messages(values: &[Value]) -> Result<Vec<Message>> {
    let messages: Vec<Message> = values.iter().map(Message::read).collect::<Result<_, _>>()?;
    let Some(last) = messages.last() else { bail!("no messages; expected at least one") };
    ensure!(
        last.role != "assistant",
        "the last message is the assistant's; leave it out, since the reply is generated"
    );
    Ok(messages)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<Vec<PromptRow>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.jsonl");
        std::fs::write(&file, text).unwrap();
        PromptRow::read(&file)
    }

    #[test]
    fn rows_keep_their_fields() {
        let rows = read("{\"id\": 7, \"prompt\": \"a\"}\n\n{\"prompt\": \"\"}\n").unwrap();
        assert_eq!((rows.len(), rows[0].fields["id"].as_u64()), (2, Some(7)));
        assert!(rows[1].place.ends_with("p.jsonl:3"), "{}", rows[1].place);
    }

    #[test]
    fn files_are_read_as_those_of_tasks_are() {
        let line = "{\"prompt\": \"a\", \"messages\": null}\n";
        // printf '{"prompt": "a", "messages": null}\n' | gzip -n
        let gzipped: [u8; 53] = [
            31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 171, 86, 42, 40, 202, 207, 45, 40, 81, 178, 82, 80, 74, 84, 210, 81, 80,
            202, 77, 45, 46, 78, 76, 79, 45, 6, 10, 228, 149, 230, 228, 212, 114, 1, 0, 150, 23, 13, 200, 34, 0, 0, 0,
        ];
        for bytes in [line.as_bytes(), format!("\u{feff}{line}").as_bytes(), &gzipped[..]] {
            let rows = read(bytes).unwrap();
            assert!(matches!(&rows[0].prompt, Prompt::Text(text) if text == "a"), "{rows:?}");
            assert_eq!(rows[0].fields.len(), 2);
        }
        let error = format!("{:#}", read("{\"prompt\": \"a\"}\n{\"prompt\" 1}").unwrap_err());
        assert!(error.contains("p.jsonl: line 2 column 11: not JSON"), "{error}");
    }

    #[test]
    fn messages_are_a_chat_with_one_system_message() {
        let rows = r#"{"messages": [{"role": "user", "content": "a"}]}
{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}
{"prompt": "a"}"#;
        let roles = |row: PromptRow| match row.into_chat(Some("t")) {
            Ok(PromptRow { prompt: Prompt::Chat(chat), .. }) => chat.messages.into_iter().map(|m| m.role).collect(),
            other => vec![format!("{other:?}")],
        };
        let rows: Vec<Vec<String>> = read(rows).unwrap().into_iter().map(roles).collect();
        assert_eq!((&rows[0], &rows[2]), (&vec!["system".to_owned(), "user".to_owned()], &rows[0]));
        assert!(rows[1][0].contains("a system message of its own"), "{rows:?}");
    }

    #[test]
    fn the_tools_of_a_row_are_those_of_its_conversation() {
        let user = r#"[{"role": "user", "content": "a"}]"#;
        let tools = r#"[{"name": "f", "strict": null}]"#;
        let rows = format!(
            "{{\"messages\": {user}, \"tools\": {tools}}}\n{{\"prompt\": {user}, \"tools\": {}}}\n\
             {{\"messages\": {user}}}\n",
            json!(r#"[{"name": "f"}]"#)
        );
        let tools = |row: PromptRow| match row.into_chat(None).unwrap().prompt {
            Prompt::Chat(chat) => chat.tools,
            Prompt::Text(_) => None,
        };
        let tools: Vec<Option<Value>> = read(rows).unwrap().into_iter().map(tools).collect();
        assert_eq!(tools, [Some(json!([{"name": "f", "strict": null}])), Some(json!([{"name": "f"}])), None]);
        let error = format!("{:#}", read(format!("{{\"messages\": {user}, \"tools\": \"[\"}}")).unwrap_err());
        assert!(error.contains("p.jsonl:1: `tools`"), "{error}");
    }

    #[test]
    fn rows_without_a_prompt_are_refused_with_their_line() {
        let error = |text| format!("{:#}", read(text).unwrap_err());
        assert!(
            error("{\"prompt\": \"a\"}\n{\"text\": 1}\n")
                .contains("p.jsonl:2: expected a field `prompt` or `messages`, found text")
        );
        assert!(error("{\"prompt\": 5}").contains("p.jsonl:1: `prompt` is 5; expected a text"));
        assert!(error("{\"messages\": []}").contains("`messages`: no messages"));
        let replied = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        assert!(error(replied).contains("the last message is the assistant's"));
        assert!(error("[1]").contains("p.jsonl:1: expected a JSON object"));
        assert!(error("\n").contains("no rows"));
    }
}
