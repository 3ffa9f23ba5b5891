//! Prompts, from the command line, stdin or a file.

use anyhow::{Context as _, Result, bail, ensure};
use lorakit_task::{Example, Message, Tokenizer};
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
    /// The prompt.
    pub prompt: Prompt,
}

/// What text is generated for.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text, which is continued.
    Text(String),
    /// Messages, which the base's chat template renders for the reply to them.
    Chat(Vec<Message>),
}

impl PromptRow {
    /// The prompt as typed, or from stdin for `-`.
    pub fn typed(text: &str) -> Result<Self> {
        let mut prompt = text.to_owned();
        if text == "-" {
            prompt.clear();
            std::io::stdin().read_to_string(&mut prompt).context("cannot read the prompt from stdin")?;
        }
        let fields = Map::from_iter([("prompt".to_owned(), json!(prompt))]);
        Ok(Self { place: "the prompt".to_owned(), fields, prompt: Prompt::Text(prompt) })
    }

    /// The rows of a file of JSON lines, at least one.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let rows: Vec<Self> = lines
            .map(|(i, line)| {
                let place = format!("{}:{}", path.display(), i + 1);
                Self::of_line(line, &place).with_context(|| place)
            })
            .collect::<Result<_>>()?;
        ensure!(!rows.is_empty(), "{}: no rows; expected a JSON object a line, with a `prompt`", path.display());
        Ok(rows)
    }

    fn of_line(line: &str, place: &str) -> Result<Self> {
        let row = serde_json::from_str(line).context("expected a JSON object")?;
        let Value::Object(fields) = row else { bail!("expected a JSON object, such as {{\"prompt\": \"...\"}}") };
        let Some(prompt) = fields.get("prompt") else {
            let found: Vec<&str> = fields.keys().map(String::as_str).collect();
            bail!(
                "expected a field `prompt`, found {}",
                if found.is_empty() { "none".into() } else { found.join(", ") }
            )
        };
        let Value::String(text) = prompt else { bail!("`prompt` is {prompt}; expected a text") };
        let prompt = Prompt::Text(text.clone());
        Ok(Self { place: place.to_owned(), fields, prompt })
    }

    /// The prompt as a user's message, after a system message if one is given.
    pub fn into_chat(self, system: Option<&str>) -> Self {
        let prompt = match self.prompt {
            Prompt::Text(text) => {
                let system = system.map(|system| Message::new("system", system));
                Prompt::Chat(system.into_iter().chain([Message::new("user", &text)]).collect())
            }
            chat => chat,
        };
        Self { prompt, ..self }
    }

    /// The prompt's tokens, cut from the left to at most `max_length`.
    pub fn tokens(&self, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<u32>> {
        match &self.prompt {
            Prompt::Text(text) => Example::encode_prompt(text, tokenizer, max_length),
            Prompt::Chat(messages) => Example::encode_chat_prompt(messages, tokenizer, max_length),
        }
        .with_context(|| self.place.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Vec<PromptRow>> {
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
    fn rows_without_a_prompt_are_refused_with_their_line() {
        let error = |text| format!("{:#}", read(text).unwrap_err());
        assert!(
            error("{\"prompt\": \"a\"}\n{\"text\": 1}\n").contains("p.jsonl:2: expected a field `prompt`, found text")
        );
        assert!(error("{\"prompt\": 5}").contains("p.jsonl:1: `prompt` is 5; expected a text"));
        assert!(error("[1]").contains("p.jsonl:1: expected a JSON object"));
        assert!(error("\n").contains("no rows"));
    }
}
