//! Warns of rows and prompts that are tokenized differently from the experts' training rows.

use crate::command_context::CommandContext;
use lorakit_adapter::ExpertRecord;
use lorakit_fit::{OpenLibrary, chat_template_of, trained_encoding};
use lorakit_task::{BosTokens, Conversation, Example, Message, RowEncoding, Task, Tokenizer};

/// Compares how rows and prompts are tokenized with how the training rows of the experts in use were.
pub struct EncodingCheck<'a> {
    records: Vec<(&'a str, &'a ExpertRecord)>,
    /// What they are: experts of a library, or a base or an adapter.
    is_library: bool,
}

/// How a task's rows, or prompts, become tokens.
struct UsedEncoding {
    /// The SHA-256 of the chat template that they go through.
    template: Option<String>,
    /// Whether they begin with BOS; none where the choice changes nothing.
    bos: Option<BosTokens>,
}

impl<'a> EncodingCheck<'a> {
    /// The experts of a library that `is_used` says are used, as far as something is recorded of them.
    pub fn of(opened: &'a OpenLibrary, is_used: impl Fn(&str) -> bool) -> Self {
        let experts = opened.experts.names().iter().zip(&opened.records).filter(|(name, _)| is_used(name));
        Self::of_records(experts.filter_map(|(name, record)| Some((name.as_str(), record.as_ref()?))))
    }

    /// The experts of these names and records.
    pub fn of_records(records: impl IntoIterator<Item = (&'a str, &'a ExpertRecord)>) -> Self {
        Self { records: records.into_iter().collect(), is_library: true }
    }

    /// An adapter, or a base.
    pub fn one(name: &'a str, record: &'a ExpertRecord) -> Self {
        Self { records: vec![(name, record)], is_library: false }
    }

    /// Warns of tasks; `doing` is what is done with their rows, such as `scored`.
    pub fn warn_of_tasks(&self, tasks: &[Task], doing: &str, tokenizer: &Tokenizer, context: &CommandContext) {
        for task in tasks {
            let template = chat_template_of(task, tokenizer);
            let used = UsedEncoding { bos: bos(template.is_some(), tokenizer), template };
            self.warn(&format!("task `{}` is {doing}", task.name), &used, context);
        }
    }

    /// Warns of prompts, which go through the chat template or not.
    pub fn warn_of_prompts(&self, is_chat: bool, tokenizer: &Tokenizer, context: &CommandContext) {
        let template = is_chat.then(|| tokenizer.chat_template().ok()).flatten();
        let template = template.map(|template| template.sha256().to_owned());
        self.warn("the prompt is given", &UsedEncoding { bos: bos(is_chat, tokenizer), template }, context);
    }

    fn warn(&self, subject: &str, used: &UsedEncoding, context: &CommandContext) {
        let trained: Vec<_> = self.records.iter().filter(|(_, record)| !record.tasks.is_empty()).collect();
        let other =
            |(_, record): &&&(&str, &ExpertRecord)| record.tasks.iter().all(|task| task.chat_template != used.template);
        if let Some((first, record)) = trained.iter().find(other) {
            let name = |template: &Option<String>| match template {
                Some(hash) => format!("the chat template {}", &hash[..hash.len().min(8)]),
                None => "no chat template".to_owned(),
            };
            let own = &record.tasks[0].chat_template;
            let advice = if used.template.is_none() { "; --chat puts it through the base's" } else { "" };
            context.output.warn(format!(
                "{subject} under {}, but {} trained under {}{advice}",
                name(&used.template),
                self.who(first, trained.iter().filter(other).count(), trained.len()),
                name(own),
            ));
        }
        let Some(bos) = used.bos else { return };
        let other = |(_, record): &&&(&str, &ExpertRecord)| {
            trained_encoding(record, "").is_some_and(|encoding| encoding.bos != bos)
        };
        if let Some((first, _)) = trained.iter().find(other) {
            let who = self.who(first, trained.iter().filter(other).count(), trained.len());
            context.output.warn(match bos {
                BosTokens::Auto => {
                    format!("{subject} with BOS, but {who} trained without (bos=never); --bos never leaves it out")
                }
                BosTokens::Never => format!("{subject} without BOS (--bos never), but {who} trained with it"),
            });
        }
    }

    /// The subject of what is known of `others` of `all`, such as `first`.
    fn who(&self, first: &str, others: usize, all: usize) -> String {
        match self.is_library {
            true => format!("{others} of {all} experts, such as `{first}`, were"),
            false => format!("{first} was"),
        }
    }
}

/// Whether texts, or conversations, begin with BOS; none where the tokenizer or the template puts none there anyway.
fn bos(is_chat: bool, tokenizer: &Tokenizer) -> Option<BosTokens> {
    let encoding = tokenizer.encoding();
    let tokens = |bos| {
        let tokenizer = tokenizer.clone().with_encoding(RowEncoding { bos, ..encoding });
        let ask = Conversation::new(vec![Message::new("user", "a")]);
        match is_chat {
            true => Example::encode_chat_prompt(&ask, &tokenizer, usize::MAX).ok(),
            false => Example::encode_prompt("a", &tokenizer, usize::MAX).ok(),
        }
    };
    (tokens(BosTokens::Auto) != tokens(BosTokens::Never)).then_some(encoding.bos)
}
