//! A conversation as tokens, by the base's chat template.

use std::ops::Range;

use crate::chat::conversation::{ASSISTANT, Conversation, Message, SYSTEM, USER};
use crate::chat::reply_span::{ReplyFinder, ReplySource};
use crate::error::{Result, TaskError};
use crate::row::{Row, RowKind};
use crate::tokenization::row_encoding::LossTokens;
use crate::tokenization::tokenizer::Tokenizer;
use tokenizers::Encoding;

/// A rendered and tokenized conversation.
pub(crate) struct ConversationTokens {
    pub tokens: Vec<u32>,
    pub loss: Vec<bool>,
    /// The tokens of the last reply, with the one that ends its turn.
    pub reply: Range<usize>,
    pub reply_source: ReplySource,
    /// The messages that were left out to fit the length.
    pub dropped_messages: usize,
    /// Whether the template leaves out what replies of text call besides.
    pub drops_calls: bool,
}

impl ConversationTokens {
    /// Renders and tokenizes. As long as the tokens up to the last one with loss are more than `max_length`, the oldest turn is
    /// left out; the last turn alone may still be longer.
    pub fn encode(conversation: &Conversation, tokenizer: &Tokenizer, max_length: usize) -> Result<ConversationTokens> {
        let template = tokenizer.chat_template()?;
        let (special, stops) = (tokenizer.special_texts(), tokenizer.stop_texts());
        // The same whatever turns before it are left out; to find it is slow.
        let mut unread = None;
        let (kept, rendered, encoding) = shortened(conversation, |kept| {
            let rendered = template.render(&kept, false)?;
            let encoding = tokenizer.encode_with_offsets(&rendered.text)?;
            let fits = encoding.len() <= max_length || {
                let finder = ReplyFinder {
                    template,
                    conversation: &kept,
                    rendered: &rendered,
                    special: &special,
                    stops: &stops,
                };
                let unread = *unread.get_or_insert_with(|| unread_tokens(&finder, &encoding, tokenizer));
                encoding.len() <= max_length.saturating_add(unread)
            };
            Ok(((kept, rendered, encoding), fits))
        })?;
        let dropped_messages = conversation.messages.len() - kept.messages.len();
        let (tokens, offsets) = (encoding.get_ids().to_vec(), encoding.get_offsets());
        if tokens.is_empty() {
            return Err(TaskError::Row(
                "the base's tokenizer has no token for anything in the conversation".to_owned(),
            ));
        }
        let finder =
            ReplyFinder { template, conversation: &kept, rendered: &rendered, special: &special, stops: &stops };
        let found = finder.find();
        // Elsewhere a call may be left out: nothing is learned of its reply.
        let last_alone = match tokenizer.encoding().loss {
            LossTokens::All => false,
            LossTokens::Assistant => found.as_ref().is_none_or(|found| found.source == ReplySource::LastReply),
            LossTokens::Last => true,
        };
        let first = kept.last_reply().filter(|_| last_alone).unwrap_or(0);
        let render = |other: &Conversation| Ok(template.render(other, false)?.text);
        if let Some(function) = kept.left_out_call(first, &rendered.text, render) {
            return Err(TaskError::Row(format!(
                "the chat template does not render `tool_calls`: of a reply that calls `{function}` nothing would be left to learn"
            )));
        }
        let drops_calls = kept.leaves_calls_out(first, &rendered.text, render);
        let found = found.ok_or_else(|| {
            TaskError::Row("the chat template does not render the last reply, so there is nothing to learn".to_owned())
        })?;
        let unweighted = |reply: usize| kept.messages[reply].has_no_weight();
        if tokenizer.encoding().loss != LossTokens::All && kept.last_reply().is_some_and(unweighted) {
            return Err(TaskError::Row("the last reply has `weight` 0; leave out its turn".to_owned()));
        }
        let spans: Vec<Range<usize>> = found.spans.iter().map(|span| token_range(offsets, span)).collect();
        let reply = spans.last().cloned().unwrap_or_default();
        let mut loss = vec![tokenizer.encoding().loss == LossTokens::All; tokens.len()];
        match tokenizer.encoding().loss {
            LossTokens::All => {}
            LossTokens::Assistant => spans.iter().for_each(|span| loss[span.clone()].fill(true)),
            LossTokens::Last => loss[reply.clone()].fill(true),
        }
        // Only every reply's loss needs the earlier ones.
        let every = tokenizer.encoding().loss == LossTokens::Assistant;
        let reply_source = if every { found.source } else { ReplySource::default() };
        Ok(ConversationTokens { tokens, loss, reply, reply_source, dropped_messages, drops_calls })
    }
}

/// The number of tokens after the last one with loss, which are never read.
fn unread_tokens(finder: &ReplyFinder, encoding: &Encoding, tokenizer: &Tokenizer) -> usize {
    match tokenizer.encoding().loss {
        LossTokens::All => 0,
        LossTokens::Assistant | LossTokens::Last => {
            let last = finder.find().and_then(|found| found.spans.last().cloned());
            last.map_or(0, |span| encoding.len() - token_range(encoding.get_offsets(), &span).end)
        }
    }
}

/// The tokens that overlap a range of bytes.
fn token_range(offsets: &[(usize, usize)], bytes: &Range<usize>) -> Range<usize> {
    let start = offsets.iter().position(|&(_, end)| end > bytes.start).unwrap_or(offsets.len());
    let end = offsets.iter().rposition(|&(start, _)| start < bytes.end).map_or(0, |last| last + 1);
    start..end.max(start)
}

/// The tokens that the last reply of a conversation is generated after, and the text that they encode. As long as they are
/// more than `max_length`, the oldest turn is left out; the last turn alone may still be longer.
pub(crate) fn encode_prompt(
    conversation: &Conversation,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(String, Vec<u32>)> {
    shortened(conversation, |kept| {
        let before = kept.prefix(kept.last_reply().unwrap_or(kept.messages.len()));
        let text = tokenizer.chat_template()?.render(&before, true)?.text;
        let tokens = tokenizer.encode_without_special(&text)?;
        let fits = tokens.len() <= max_length;
        Ok(((text, tokens), fits))
    })
}

/// What `attempt` makes of a conversation with as few of its oldest turns left out as fit; with the last turn alone if none
/// fits. The more turns are left out, the shorter it is, so few numbers of turns are tried, small ones first.
fn shortened<T>(conversation: &Conversation, mut attempt: impl FnMut(Conversation) -> Result<(T, bool)>) -> Result<T> {
    let (mut made, fits) = attempt(conversation.clone())?;
    if fits {
        return Ok(made);
    }
    let most = conversation.droppable_turns();
    let (mut too_few, mut enough) = (0, None);
    while too_few < most && enough != Some(too_few + 1) {
        let turns = match enough {
            Some(enough) => usize::midpoint(too_few, enough),
            None => most.min((2 * too_few).max(1)),
        };
        let (shorter, fits) = attempt(conversation.without_oldest_turns(turns))?;
        if fits {
            (made, enough) = (shorter, Some(turns));
        } else {
            too_few = turns;
            if turns == most {
                made = shorter;
            }
        }
    }
    Ok(made)
}

/// The row as a conversation whose last reply is `answer`; None if it is encoded as plain text.
pub(crate) fn conversation_of(row: &Row, answer: &str, tokenizer: &Tokenizer) -> Result<Option<Conversation>> {
    match &row.kind {
        RowKind::Conversation(conversation) if conversation.description.is_none() => Ok(Some(conversation.clone())),
        RowKind::Conversation(conversation) => {
            Ok(Some(conversation.described(tokenizer.chat_template()?.has_system_role())))
        }
        RowKind::Plain { instruction, input } if tokenizer.encoding().chat => {
            let takes_system = tokenizer.chat_template()?.has_system_role();
            let mut messages = match (instruction.as_str(), input.as_str()) {
                (_, "") => vec![Message::new(USER, instruction)],
                ("", _) => vec![Message::new(USER, input)],
                _ if takes_system => vec![Message::new(SYSTEM, instruction), Message::new(USER, input)],
                _ => vec![Message::new(USER, &format!("{instruction}\n{input}"))],
            };
            messages.push(Message::new(ASSISTANT, answer));
            Ok(Some(Conversation::new(messages)))
        }
        RowKind::Plain { .. } | RowKind::Text => Ok(None),
    }
}
