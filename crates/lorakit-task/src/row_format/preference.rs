//! Rows of `chosen` and `rejected`, as DPO has them. No preference is learned here: the chosen answer is the row's.

use serde_json::Value;

use crate::chat::conversation::{ASSISTANT, Conversation, Message, SYSTEM, USER};
use crate::column_names::question;
use crate::common_prefix::common_prefix;
use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;
use crate::row_format::prompt_completion::Pair;
use crate::row_format::{instruction, messages};

/// `chosen` and `rejected`, texts or messages, after a `prompt`, the messages of a conversation, or an instruction and its
/// input; where all of these are left out, both begin with the prompt.
pub(crate) struct Preference;

/// The columns of messages that come before the answers in LLaMA-Factory's data.
const CONVERSATIONS: [&str; 2] = ["messages", "conversations"];

impl RowFormat for Preference {
    fn columns(&self) -> &'static str {
        "`chosen` and `rejected`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        let is_other = ["output", "completion"].iter().any(|name| columns.is_named(name));
        columns.get("chosen").is_some() && columns.get("rejected").is_some() && !is_other
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        Ok(pair(columns)?.prompt())
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        match pair(columns) {
            // The prompt may be a template's.
            Err(TaskError::MissingColumn { .. }) if columns.get("chosen").is_some_and(Value::is_string) => {
                Ok(Answer::Text(vec![json_value::text(columns.require("chosen")?)?]))
            }
            pair => pair?.answer("chosen"),
        }
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        match pair(columns)? {
            Pair::Texts(..) if columns.get("prompt").is_none() && instruction::is_given(columns) => {
                instruction::kind(columns)
            }
            pair => pair.kind(columns),
        }
    }

    fn delimiter(&self) -> Option<&'static str> {
        Some("")
    }

    fn warnings(&self, columns: &Columns) -> Vec<String> {
        let preference = "of rows with `chosen` and `rejected` only `chosen` is used: no preference is trained";
        [Some(preference.to_owned()), self.unused_columns(columns)].into_iter().flatten().collect()
    }
}

fn pair(columns: &Columns) -> Result<Pair> {
    let (chosen, rejected) = (columns.require("chosen")?, columns.require("rejected")?);
    let is_prompted = columns.get("prompt").is_some();
    let is_conversation = matches!(chosen, Value::Array(_) | Value::Object(_));
    if is_conversation || (!is_prompted && conversation_column(columns).is_some()) {
        return Ok(Pair::Messages(messages::with_system(conversation(columns)?, columns)));
    }
    if is_prompted {
        return Pair::read(columns, "chosen");
    }
    let chosen = json_value::text(chosen).at(|| "`chosen`")?;
    if instruction::is_given(columns) {
        return Ok(Pair::Texts(instruction::prompt(columns)?, chosen));
    }
    let rejected = json_value::text(rejected).at(|| "`rejected`")?;
    if let Some((name, _)) = question(columns.as_map()).filter(|(_, text)| !chosen.contains(text)) {
        return Err(columns.missing_but("prompt", name));
    }
    let at = common_text(&chosen, &rejected);
    Ok(Pair::Texts(chosen[..at].to_owned(), chosen[at..].to_owned()))
}

/// What comes before the answers.
enum Prompt {
    /// Messages; without any, the chosen ones begin with the prompt.
    Messages(Vec<Message>),
    /// A text or a column of conversations, which chosen messages with a user's message give again.
    Repeated(Vec<Message>),
}

fn conversation(columns: &Columns) -> Result<Conversation> {
    let prompt = prompt(columns)?;
    let (chosen, rejected) = (answers(columns, "chosen")?, answers(columns, "rejected")?);
    if matches!(&prompt, Prompt::Messages(messages) if messages.is_empty())
        && chosen.first().is_some_and(Message::is_reply)
    {
        match question(columns.as_map()) {
            Some((name, _)) => return Err(columns.missing_but("prompt", name)),
            None if chosen.iter().all(Message::is_reply) => return Err(columns.missing("prompt")),
            None => {}
        }
    }
    Ok(joined(prompt, chosen, &rejected))
}

fn prompt(columns: &Columns) -> Result<Prompt> {
    let user = |text: &str| Prompt::Repeated(vec![Message::new(USER, text)]);
    Ok(match (columns.get("prompt"), conversation_column(columns)) {
        (Some(Value::Array(_)), _) => Prompt::Messages(list(columns, "prompt")?),
        (Some(text), _) => user(&json_value::text(text).at(|| "`prompt`")?),
        (None, Some(name)) => Prompt::Repeated(list(columns, name)?),
        (None, None) if instruction::is_given(columns) => user(instruction::prompt(columns)?.trim_end_matches('\n')),
        (None, None) => Prompt::Messages(Vec::new()),
    })
}

fn conversation_column(columns: &Columns) -> Option<&'static str> {
    CONVERSATIONS.into_iter().find(|name| columns.get(name).is_some())
}

/// The messages of a column, not as numbers are written: the template receives JSON.
fn list(columns: &Columns, column: &str) -> Result<Vec<Message>> {
    messages::read(columns.as_map().get(column).ok_or_else(|| columns.missing(column))?, column)
}

/// The messages of `chosen` or `rejected`, which may be one of them, or the text of a reply.
fn answers(columns: &Columns, column: &str) -> Result<Vec<Message>> {
    match columns.as_map().get(column) {
        Some(message @ Value::Object(_)) => messages::read(&Value::Array(vec![message.clone()]), column),
        Some(Value::String(text)) if !text.trim_start().starts_with('[') => Ok(vec![Message::new(ASSISTANT, text)]),
        _ => list(columns, column),
    }
}

/// The prompt and the chosen messages, learned from where the rejected ones differ. What the chosen ones give again of the
/// prompt, which TRL leaves to the data, is there once.
fn joined(prompt: Prompt, chosen: Vec<Message>, rejected: &[Message]) -> Conversation {
    let same = |a: &Message, b: &Message| a.role == b.role && a.content == b.content;
    let system = |messages: &[Message]| messages.iter().take_while(|message| message.role == SYSTEM).count();
    let is_asked = chosen.iter().take_while(|message| !message.is_reply()).any(|message| message.role == USER);
    let (prompt, is_whole) = match prompt {
        Prompt::Messages(messages) => (messages, false),
        Prompt::Repeated(messages) => (messages, is_asked),
    };
    let (own, again) = (system(&prompt), system(&chosen));
    let (turns, others) = (&prompt[own..], &chosen[again..]);
    let is_repeated = turns.len() <= others.len() && turns.iter().zip(others).all(|(a, b)| same(a, b));
    let mut all = match is_whole || is_repeated {
        true if again > 0 => Vec::new(),
        true => prompt[..own].to_vec(),
        false => prompt,
    };
    // All that follows a prompt of its own is learned.
    let is_answer = !all.is_empty() && chosen.first().is_some_and(Message::is_reply);
    let common = if is_answer { 0 } else { chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count() };
    // Equal answers: only the last reply is learned.
    let given = all.len() + common.min(chosen.iter().rposition(Message::is_reply).unwrap_or(0));
    all.extend(chosen);
    Conversation { given, ..Conversation::new(all) }
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
    use crate::source::document::SourceRow;
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

    #[test]
    fn an_instruction_comes_before_the_answers() {
        let both = json!({"instruction": "Name one.", "input": "Not red.", "chosen": "Blue.", "rejected": "Red."});
        assert_eq!(read(both.clone()), ("Name one.\nNot red.\n".into(), "Blue.".into()));
        let plain = RowKind::Plain { instruction: "Name one.".into(), input: "Not red.".into() };
        assert_eq!(Preference.kind(&Columns::of(&both)).unwrap(), plain);
        let reply = |text: &str| json!([{"role": "assistant", "content": text}]);
        let list =
            json!({"instruction": "Name one.", "input": "", "chosen": reply("Blue."), "rejected": reply("Red.")});
        assert_eq!(read(list), ("user: Name one.\n".into(), "Blue.".into()));
    }

    #[test]
    fn a_question_of_another_name_is_not_lost() {
        let reply = |text: &str| json!([{"role": "assistant", "content": text}]);
        for (chosen, rejected) in [(json!("It is blue."), json!("It is red.")), (reply("Blue."), reply("Red."))] {
            let row = json!({"system": "S", "question": "Sky?", "chosen": chosen, "rejected": rejected});
            let error = Preference.prompt(&Columns::of(&row)).unwrap_err().to_string();
            assert!(error.contains("has no `prompt`") && error.contains("Try --columns prompt=question"), "{error}");
        }
        let alone = json!({"chosen": reply("Blue."), "rejected": reply("Red.")});
        assert!(Preference.prompt(&Columns::of(&alone)).unwrap_err().to_string().contains("has no `prompt`"));
        // Both begin with it.
        let implicit = json!({"question": "Sky?", "chosen": "Sky? Blue.", "rejected": "Sky? Red."});
        assert_eq!(read(implicit), ("Sky?".into(), " Blue.".into()));
    }

    #[test]
    fn messages_that_the_chosen_ones_do_not_repeat_are_kept() {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let [system, user] = [message("system", "S"), message("user", "a")];
        let [good, bad] = ["good", "bad"].map(|text| message("assistant", text));
        let tool = message("tool", "7");
        let prompt = |given: Value, chosen: Value, rejected: Value| {
            let fields = json!({"prompt": given, "chosen": chosen, "rejected": rejected});
            let Pair::Messages(read) = pair(&Columns::of(&fields)).unwrap() else { unreachable!() };
            (messages::prompt(&read), read.given)
        };
        let called = json!([user, message("assistant", "f")]);
        let expected = ("user: a\nassistant: f\ntool: 7\n".to_owned(), 3);
        assert_eq!(prompt(called, json!([tool, good]), json!([tool, bad])), expected);
        let whole = ("system: S\nuser: a\n".to_owned(), 2);
        assert_eq!(prompt(json!([system, user]), json!([user, good]), json!([user, bad])), whole);
        assert_eq!(prompt(json!([system, user]), json!([system, user, good]), json!([system, user, bad])), whole);
        assert_eq!(prompt(json!([user]), json!([system, user, good]), json!([system, user, bad])), whole);
        assert_eq!(prompt(json!([system]), json!([user, good]), json!([user, bad])), whole);
        assert_eq!(prompt(json!([system, user]), json!([good]), json!([bad])), whole);
    }

    #[test]
    fn answers_may_be_objects_of_speakers_after_a_conversation() {
        let turn = |from: &str, text: &str| json!({"from": from, "value": text});
        let row = |chosen: Value, rejected: Value| json!({"conversations": [turn("human", "Sky?")], "system": "S", "chosen": chosen, "rejected": rejected});
        let expected = ("system: S\nuser: Sky?\n".to_owned(), "Blue.".to_owned());
        let [good, bad] = ["Blue.", "Red."].map(|text| turn("gpt", text));
        assert_eq!(read(row(good.clone(), bad.clone())), expected);
        assert_eq!(read(row(json!([good]), json!([bad]))), expected);
        assert_eq!(read(row(json!("Blue."), json!("Red."))), expected);
        let whole = |answer: &Value| json!([turn("human", "Sky?"), answer]);
        assert_eq!(read(row(whole(&good), whole(&bad))), expected);
        let text = json!({"prompt": "Sky?", "system": "S", "chosen": good, "rejected": bad});
        assert_eq!(read(text), expected);
    }

    #[test]
    fn a_named_output_is_the_answer() {
        let fields = json!({"question": "Sky?", "chosen": "Blue.", "rejected": "Red."});
        let row =
            SourceRow { fields: fields.as_object().unwrap(), written: None, null_padded: false, unreadable: None };
        let columns = |names: &str| Columns::new(row, &names.parse().unwrap(), None).unwrap();
        assert!(!Preference.matches(&columns("input=question,output=chosen")));
        let prompted = columns("prompt=question");
        assert!(Preference.matches(&prompted));
        assert_eq!(Preference.prompt(&prompted).unwrap(), "Sky?");
        // With a template for the prompt.
        assert_eq!(Preference.answer(&Columns::of(&fields)).unwrap(), Answer::Text(vec!["Blue.".into()]));
    }
}
