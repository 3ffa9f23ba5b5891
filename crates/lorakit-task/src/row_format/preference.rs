//! Rows of `chosen` and `rejected`, as DPO has them. No preference is learned here: the chosen answer is the row's.

use serde_json::Value;

use crate::chat::conversation::{Conversation, Message, USER};
use crate::common_prefix::common_prefix;
use crate::error::Result;
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;
use crate::row_format::messages;
use crate::row_format::prompt_completion::Pair;

/// `chosen` and `rejected`, with a `prompt` or, where it is left out, both beginning with it.
pub(crate) struct Preference;

impl RowFormat for Preference {
    fn columns(&self) -> &'static str {
        "`chosen` and `rejected`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.get("chosen").is_some() && columns.get("rejected").is_some()
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        Ok(pair(columns)?.prompt())
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        pair(columns)?.answer("chosen")
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        pair(columns)?.kind(columns)
    }

    fn delimiter(&self) -> Option<&'static str> {
        Some("")
    }

    fn warning(&self, _: &Columns) -> Option<&'static str> {
        Some("of rows with `chosen` and `rejected` only `chosen` is used: no preference is trained")
    }
}

fn pair(columns: &Columns) -> Result<Pair> {
    let (chosen, rejected) = (columns.require("chosen")?, columns.require("rejected")?);
    match (columns.get("prompt"), chosen) {
        (Some(prompt), Value::Array(_)) => {
            let chosen = messages::read(chosen, "chosen")?;
            // Some data sets give the prompt again at the start of both.
            if chosen.first().is_some_and(|first| !first.is_reply()) {
                return Ok(Pair::Messages(after_common(chosen, rejected)?));
            }
            let mut all = match prompt {
                Value::Array(_) => messages::read(prompt, "prompt")?,
                text => vec![Message::new(USER, &json_value::text(text)?)],
            };
            let given = all.len();
            all.extend(chosen);
            Ok(Pair::Messages(Conversation { given, ..Conversation::new(all) }))
        }
        (Some(_), _) => Pair::read(columns, "chosen"),
        (None, Value::Array(_)) => Ok(Pair::Messages(after_common(messages::read(chosen, "chosen")?, rejected)?)),
        (None, _) => {
            let (chosen, rejected) = (json_value::text(chosen)?, json_value::text(rejected)?);
            let at = common_text(&chosen, &rejected);
            Ok(Pair::Texts(chosen[..at].to_owned(), chosen[at..].to_owned()))
        }
    }
}

/// The chosen messages, learned from where the rejected ones differ.
fn after_common(chosen: Vec<Message>, rejected: &Value) -> Result<Conversation> {
    let rejected = messages::read(rejected, "rejected")?;
    let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    // Equal answers: only the last reply is learned.
    let given = common.min(chosen.iter().rposition(Message::is_reply).unwrap_or(0));
    Ok(Conversation { given, ..Conversation::new(chosen) })
}

/// The length in bytes of what two texts begin with, less a space at its end, as TRL finds a prompt that is left out.
fn common_text(a: &str, b: &str) -> usize {
    let length = common_prefix(a, b);
    a[..length].strip_suffix(' ').map_or(length, str::len)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn read(fields: Value) -> (String, String) {
        let columns = Columns::of(&fields);
        let Answer::Text(answer) = Preference.answer(&columns).unwrap() else { unreachable!() };
        (Preference.prompt(&columns).unwrap(), answer[0].clone())
    }

    #[test]
    fn the_chosen_answer_follows_the_prompt() {
        let pair = |prompt: &str, answer: &str| (prompt.to_owned(), answer.to_owned());
        let texts = json!({"prompt": "Sky?", "chosen": " Blue.", "rejected": " Red."});
        assert_eq!(read(texts), pair("Sky?", " Blue."));
        let implicit = json!({"chosen": "Sky? Blue.", "rejected": "Sky? Red."});
        assert_eq!(read(implicit), pair("Sky?", " Blue."));
        let user = json!({"role": "user", "content": "Sky?"});
        let reply = |text: &str| json!({"role": "assistant", "content": text});
        let expected = pair("user: Sky?\n", "Blue.");
        let chat = json!({"prompt": [user], "chosen": [reply("Blue.")], "rejected": [reply("Red.")]});
        assert_eq!(read(chat), expected);
        let whole = json!({"prompt": "Sky?", "chosen": [user, reply("Blue.")], "rejected": [user, reply("Red.")]});
        assert_eq!(read(whole), expected);
    }
}
