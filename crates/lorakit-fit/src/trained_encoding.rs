//! How the rows that an expert was trained on became tokens, as its record says.

use lorakit_adapter::ExpertRecord;
use lorakit_task::{BosTokens, RowEncoding};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The settings in which records keep this: those of training, or [`encoding_settings`]. Defaults are left out.
#[derive(Default, Deserialize)]
#[serde(default)]
struct EncodingSettings {
    chat: bool,
    bos: BosTokens,
    /// Settings of training always have it.
    rank: Option<usize>,
}

/// How rows of `task` became tokens where an expert was trained on it, or would have: through the chat template or not, and
/// with which BOS. `None` if the record does not say. Which tokens counted for the loss is no part of it.
pub fn trained_encoding(record: &ExpertRecord, task: &str) -> Option<RowEncoding> {
    if record.tasks.is_empty() {
        return None;
    }
    let settings: EncodingSettings = record.settings.field("settings").ok().flatten().unwrap_or_default();
    let own = record.tasks.iter().find(|own| own.name == task);
    let chat = match own {
        // The template may be that of conversations among the task's rows.
        Some(_) if settings.rank.is_some() => settings.chat,
        Some(own) => own.chat_template.is_some(),
        None => settings.chat || record.tasks.iter().all(|own| own.chat_template.is_some()),
    };
    Some(RowEncoding { chat, bos: settings.bos, ..RowEncoding::default() })
}

/// The settings that say so in a record of adapters that were not trained; nothing for the defaults.
pub(crate) fn encoding_settings(encoding: RowEncoding) -> Option<Value> {
    let mut settings = Map::new();
    if encoding.chat {
        settings.insert("chat".to_owned(), json!(true));
    }
    if encoding.bos != BosTokens::Auto {
        settings.insert("bos".to_owned(), json!(encoding.bos));
    }
    (!settings.is_empty()).then_some(Value::Object(settings))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_adapter::{OpaqueRecord, TaskRecord};

    #[test]
    fn a_record_says_how_rows_became_tokens() {
        let task = |name: &str, template: Option<&str>| TaskRecord {
            name: name.to_owned(),
            chat_template: template.map(str::to_owned),
            ..TaskRecord::default()
        };
        let record = |settings: Value, tasks: Vec<TaskRecord>| ExpertRecord {
            settings: OpaqueRecord::new(&settings).unwrap(),
            tasks,
            ..ExpertRecord::default()
        };
        let of = |record: &ExpertRecord, task| {
            trained_encoding(record, task).map(|encoding| (encoding.chat, encoding.bos.name()))
        };
        assert_eq!(of(&record(json!(null), Vec::new()), "a"), None);
        let plain = record(json!({"settings": {"rank": 4}}), vec![task("a", None)]);
        assert_eq!((of(&plain, "a"), of(&plain, "b")), (Some((false, "auto")), Some((false, "auto"))));
        let chat = record(json!({"settings": {"chat": true, "bos": "never"}}), vec![task("a", Some("0"))]);
        assert_eq!((of(&chat, "a"), of(&chat, "b")), (Some((true, "never")), Some((true, "never"))));
        // Conversations go through the template in any case.
        let conversations = record(json!({"settings": {"rank": 4}}), vec![task("a", Some("0"))]);
        assert_eq!((of(&conversations, "a"), of(&conversations, "b")), (Some((false, "auto")), Some((true, "auto"))));
        let mixed = record(json!({"settings": {}}), vec![task("a", Some("0")), task("b", None)]);
        assert_eq!((of(&mixed, "a"), of(&mixed, "b")), (Some((true, "auto")), Some((false, "auto"))));
        assert_eq!(of(&mixed, "c"), Some((false, "auto")));

        let encoding = RowEncoding { chat: true, bos: BosTokens::Never, ..RowEncoding::default() };
        let weighted = record(json!({"settings": encoding_settings(encoding)}), vec![task("a", Some("0"))]);
        assert_eq!(of(&weighted, "a"), Some((true, "never")));
        assert_eq!(encoding_settings(RowEncoding::default()), None);
    }
}
