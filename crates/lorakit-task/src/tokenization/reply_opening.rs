//! What stands before the answer in a reply that goes through a chat template.

use crate::chat::chat_template::PROBE;
use crate::chat::conversation::{ASSISTANT, Message};
use crate::error::{At, Result};
use crate::row::{Row, RowKind};
use crate::tokenization::conversation_tokens::conversation_of;
use crate::tokenization::tokenizer::Tokenizer;

/// The end of reasoning, as most templates mark it.
const REASONING_END: &str = "</think>";

/// What stands before the answer in a reply: what the template itself writes there, such as an empty `<think>` block, and
/// reasoning. Models learn to write both, and neither is part of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyOpening {
    /// Whether the row goes through a template; else all of a text is its answer.
    is_reply: bool,
    /// What the template writes between the generation prompt and a reply's content, as generated text has it.
    text: String,
}

impl ReplyOpening {
    /// The opening of a row's last reply, from the chat template.
    ///
    /// # Errors
    /// If the base has no chat template for a conversation, or it refuses the conversation.
    pub fn new(row: &Row, tokenizer: &Tokenizer) -> Result<ReplyOpening> {
        ReplyOpening::of_template(row, tokenizer).at(|| format!("row {}", row.number))
    }

    fn of_template(row: &Row, tokenizer: &Tokenizer) -> Result<ReplyOpening> {
        let Some(conversation) = conversation_of(row, row.target(), tokenizer)? else {
            return Ok(ReplyOpening::default());
        };
        let template = tokenizer.chat_template()?;
        let mut before = conversation.prefix(conversation.last_reply().unwrap_or(conversation.messages.len()));
        let prompt = template.render(&before, true)?.text;
        before.messages.push(Message::new(ASSISTANT, PROBE));
        // Of another reply than the row's: a template may refuse it.
        let rendered = template.render(&before, false).map_or_else(|_| String::new(), |chat| chat.text);
        let opening = rendered.strip_prefix(&prompt).and_then(|reply| reply.split_once(PROBE));
        // Generated text is without special tokens.
        let text = match opening.map_or("", |(opening, _)| opening) {
            "" => String::new(),
            opening => tokenizer.decode(&tokenizer.encode_without_special(opening)?)?,
        };
        Ok(ReplyOpening { is_reply: true, text })
    }

    /// Without a template: reasoning alone is no part of an answer.
    pub fn reasoning(row: &Row) -> ReplyOpening {
        ReplyOpening { is_reply: matches!(row.kind, RowKind::Conversation(_)), text: String::new() }
    }

    /// Whether a text is in what the template writes: generation that stopped at it would have no answer.
    pub fn contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// The answer in a generated text.
    pub fn answer<'t>(&self, generated: &'t str) -> &'t str {
        if !self.is_reply {
            return generated;
        }
        let rest = match self.text.trim() {
            "" => generated,
            opening => generated.trim_start().strip_prefix(opening).unwrap_or(generated),
        };
        rest.rsplit_once(REASONING_END).map_or(rest, |(_, answer)| answer)
    }

    /// The answer in an accepted one, which has no opening but may have reasoning: all of it if there is nothing else.
    pub fn accepted<'t>(&self, accepted: &'t str) -> &'t str {
        let answer = accepted.rsplit_once(REASONING_END).map(|(_, answer)| answer).filter(|_| self.is_reply);
        answer.filter(|answer| !answer.trim().is_empty()).unwrap_or(accepted)
    }
}
