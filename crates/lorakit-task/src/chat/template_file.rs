//! Where a model folder has its chat template.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use crate::chat::chat_template::ChatTemplate;
use crate::error::{At, Result, TaskError};
use crate::optional_json::read_json;

/// The template's own file. It wins over tokenizer_config.json, as in transformers.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Where older folders of models with processors have it, under the key `chat_template`.
const PROCESSOR_FILE: &str = "chat_template.json";
/// The folder of templates by name, beside that file or without it, as transformers saves them.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";
/// Where folders without such files have the templates, under the key `chat_template`.
const CONFIG_FILE: &str = "tokenizer_config.json";

/// The chat template of a model folder, if it has one. `tokens` are the special tokens by name, such as `bos_token`.
///
/// # Errors
/// If a file cannot be read, or the template has a syntax error.
pub(crate) fn read(folder: &Path, tokens: Map<String, Value>) -> Result<Option<ChatTemplate>> {
    let mut files = folder_templates(&folder.join(TEMPLATE_FOLDER))?;
    if let Some(text) = read_text(&folder.join(TEMPLATE_FILE))? {
        // As in transformers, one of this name in the folder of templates wins.
        files.entry("default".to_owned()).or_insert(text);
    }
    if !files.is_empty() {
        let place = if files.len() == 1 && files.contains_key("default") { TEMPLATE_FILE } else { TEMPLATE_FOLDER };
        return ChatTemplate::of_names(&files, tokens).map(Some).at(|| folder.join(place).display().to_string());
    }
    for file in [CONFIG_FILE, PROCESSOR_FILE] {
        let path = folder.join(file);
        let config = read_json(&path)?.unwrap_or_default();
        if let Some(templates) = config.get("chat_template").filter(|templates| !templates.is_null()) {
            return compile(templates, tokens).map(Some).at(|| path.display().to_string());
        }
    }
    Ok(None)
}

/// A template's text, or named ones: a list of objects with `name` and `template`, or an object.
pub(crate) fn compile(templates: &Value, tokens: Map<String, Value>) -> Result<ChatTemplate> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named: Option<BTreeMap<String, String>> = match templates {
        Value::String(text) => return ChatTemplate::new(text, tokens),
        Value::Array(entries) => {
            entries.iter().map(|entry| Some((text(&entry["name"])?, text(&entry["template"])?))).collect()
        }
        Value::Object(named) => named.iter().map(|(name, template)| Some((name.clone(), text(template)?))).collect(),
        _ => None,
    };
    let named = named.ok_or_else(|| {
        TaskError::ChatTemplate("`chat_template`: expected a text, or templates with names".to_owned())
    })?;
    ChatTemplate::of_names(&named, tokens)
}

/// The templates of a folder that may be absent, by name.
fn folder_templates(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(templates),
        Err(error) => return Err(TaskError::read(folder.display())(error)),
    };
    for entry in entries {
        let path = entry.map_err(TaskError::read(folder.display()))?.path();
        let is_template = path.extension().is_some_and(|extension| extension == "jinja");
        if let (true, Some(name), Some(text)) = (is_template, path.file_stem(), read_text(&path)?) {
            templates.insert(name.to_string_lossy().into_owned(), text);
        }
    }
    Ok(templates)
}

/// The text of a file that may be absent, without its byte order mark.
fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))),
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

    fn render(files: &[(&str, Value)], tools: Option<Value>) -> Result<Option<String>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(TEMPLATE_FOLDER)).unwrap();
        for (name, content) in files {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let conversation = Conversation { tools, ..Conversation::new(vec![Message::new("user", "hi")]) };
        let tokens = Map::from_iter([("bos_token".to_owned(), json!("<s>"))]);
        let Some(template) = read(folder.path(), tokens)? else { return Ok(None) };
        Ok(Some(template.render(&conversation, false)?.text))
    }

    #[test]
    fn the_template_is_found_where_transformers_finds_it() {
        let text = |files: &[_], tools| render(files, tools).unwrap();
        let config = |template| ("tokenizer_config.json", json!({ "chat_template": template }));
        let one = json!("{{ bos_token }}{{ messages[0].content }}");
        assert_eq!(text(&[config(one.clone())], None).unwrap(), "<s>hi");
        assert_eq!(text(&[config(one), ("chat_template.jinja", json!("\u{feff}file"))], None).unwrap(), "file");
        assert_eq!(text(&[("chat_template.json", json!({"chat_template": "c"}))], None).unwrap(), "c");
        assert_eq!(text(&[config(Value::Null)], None), None);
        assert_eq!(text(&[], None), None);
    }

    #[test]
    fn conversations_with_tools_may_have_a_template_of_their_own() {
        let config = |template| ("tokenizer_config.json", json!({ "chat_template": template }));
        let tools = || Some(json!([{}]));
        let list = json!([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]);
        for templates in [list, json!({"default": "a", "tool_use": "b", "rag": "{% if %}"})] {
            assert_eq!(render(&[config(templates.clone())], None).unwrap().unwrap(), "a");
            assert_eq!(render(&[config(templates)], tools()).unwrap().unwrap(), "b");
        }
        let file = ("chat_template.jinja", json!("a"));
        let folder = ("additional_chat_templates/tool_use.jinja", json!("b"));
        let other = ("additional_chat_templates/README.md", json!("no"));
        let files = [config(json!("no")), file, folder.clone(), other];
        assert_eq!(render(&files, None).unwrap().unwrap(), "a");
        assert_eq!(render(&files, tools()).unwrap().unwrap(), "b");
        // Where there is no other, it is missed only by conversations without tools.
        for files in [[config(json!({"tool_use": "b"}))], [folder]] {
            assert_eq!(render(&files, tools()).unwrap().unwrap(), "b");
            let error = render(&files, None).unwrap_err().to_string();
            assert!(error.contains("for conversations with tools, `tool_use`, but none for others"), "{error}");
        }
        let error = render(&[config(json!({"rag": "c"}))], tools()).unwrap_err().chain();
        assert!(error.contains("tokenizer_config.json: chat template: expected a template named `default`, found rag"));
    }
}
