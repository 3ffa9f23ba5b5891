//! Rows of `conversations`, as ShareGPT, FastChat and LLaMA-Factory have them.

use crate::chat::conversation::Conversation;
use crate::error::Result;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::{KtoLabel, RowFormat};
use crate::row_format::messages;

/// `conversations`, a list of objects with `from` and `value`; optionally `system` and `tools`.
pub(crate) struct ShareGpt;

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

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        Ok(RowKind::Conversation(conversation(columns)?))
    }

    fn kto_label(&self, columns: &Columns) -> Option<KtoLabel> {
        messages::kto_label(columns)
    }
}

fn conversation(columns: &Columns) -> Result<Conversation> {
    messages::conversation(columns, "conversations")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chat::conversation::{ASSISTANT, SYSTEM, USER};
    use serde_json::{Value, json};

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
