//! Where a model folder has its chat template, and the special tokens that the template may name.

use std::io::ErrorKind;
use std::path::Path;

use lorakit_format::non_finite_json::non_finite_as_null;
use serde_json::{Map, Value};

use crate::chat::chat_template::ChatTemplate;
use crate::error::{At, Result, TaskError};

/// The template's own file. It wins over tokenizer_config.json, as in transformers.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Where older folders of models with processors have it, under the key `chat_template`.
const PROCESSOR_FILE: &str = "chat_template.json";
/// The files that name special tokens; the first that names one decides.
const TOKEN_FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// The chat template of a model folder, if it has one.
///
/// # Errors
/// If a file cannot be read, or the template has a syntax error.
pub(crate) fn read(folder: &Path) -> Result<Option<ChatTemplate>> {
    let config = read_json(&folder.join(TOKEN_FILES[0]))?;
    let own = read_text(&folder.join(TEMPLATE_FILE))?;
    let own = own.map(|text| text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned());
    let (place, templates) = match own {
        Some(text) => (TEMPLATE_FILE, Some(Value::String(text))),
        None => match config["chat_template"].clone() {
            Value::Null => {
                let mut processor = read_json(&folder.join(PROCESSOR_FILE))?;
                (PROCESSOR_FILE, processor.get_mut("chat_template").map(Value::take))
            }
            given => (TOKEN_FILES[0], Some(given)),
        },
    };
    let Some(templates) = templates else { return Ok(None) };
    let tokens = special_tokens(folder)?;
    compile(&templates, tokens).map(Some).at(|| folder.join(place).display().to_string())
}

/// A template's text, or a list of named ones, of which `default` and `tool_use` are used.
pub(crate) fn compile(templates: &Value, tokens: Map<String, Value>) -> Result<ChatTemplate> {
    let named = |name: &str| {
        let entries = templates.as_array().map_or(&[][..], Vec::as_slice);
        entries.iter().find(|entry| entry["name"] == name)?["template"].as_str()
    };
    let default = templates.as_str().or_else(|| named("default")).ok_or_else(|| {
        TaskError::ChatTemplate(
            "`chat_template`: expected a text, or a list with a template named `default`".to_owned(),
        )
    })?;
    let template = ChatTemplate::new(default, tokens)?;
    named("tool_use").map_or(Ok(template.clone()), |source| template.with_tool_use(source))
}

/// The special tokens by name, such as `bos_token`.
fn special_tokens(folder: &Path) -> Result<Map<String, Value>> {
    let mut tokens = Map::new();
    for file in TOKEN_FILES {
        let config = read_json(&folder.join(file))?;
        for (key, value) in config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token")) {
            let text = value.as_str().or_else(|| value["content"].as_str());
            if let (Some(text), false) = (text, tokens.contains_key(key)) {
                tokens.insert(key.clone(), text.into());
            }
        }
    }
    Ok(tokens)
}

/// The JSON of a file; null if the file is absent.
fn read_json(path: &Path) -> Result<Value> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    let value = serde_json::from_slice(&non_finite_as_null(text.as_bytes()));
    value.map_err(TaskError::from).at(|| path.display().to_string())
}

/// The text of a file that may be absent.
fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TaskError::read(path.display())(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chat::conversation::{Conversation, Message};
    use serde_json::json;

    fn render(files: &[(&str, Value)], tools: Option<Value>) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let conversation = Conversation { tools, ..Conversation::new(vec![Message::new("user", "hi")]) };
        Some(read(folder.path()).unwrap()?.render(&conversation, false).unwrap().text)
    }

    #[test]
    fn the_template_is_found_where_transformers_finds_it() {
        let config =
            |template| ("tokenizer_config.json", json!({"bos_token": {"content": "<s>"}, "chat_template": template}));
        let one = json!("{{ bos_token }}{{ messages[0].content }}");
        assert_eq!(render(&[config(one.clone())], None).unwrap(), "<s>hi");
        assert_eq!(render(&[config(one), ("chat_template.jinja", json!("file"))], None).unwrap(), "file");
        let named = json!([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]);
        assert_eq!(render(&[config(named.clone())], None).unwrap(), "a");
        assert_eq!(render(&[config(named)], Some(json!([{}]))).unwrap(), "b");
        assert_eq!(render(&[("chat_template.json", json!({"chat_template": "c"}))], None).unwrap(), "c");
        assert_eq!(render(&[config(Value::Null)], None), None);
        assert_eq!(render(&[], None), None);
        let map = ("special_tokens_map.json", json!({"bos_token": "no", "eos_token": "</s>"}));
        let both = render(&[config(json!("{{ bos_token }}{{ eos_token }}")), map], None);
        assert_eq!(both.unwrap(), "<s></s>");
    }
}
