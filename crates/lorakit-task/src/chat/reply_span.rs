//! Where the replies of a conversation are in its rendered text.

use std::ops::Range;

use crate::chat::chat_template::{ChatTemplate, RenderedChat};
use crate::chat::conversation::Conversation;
use crate::common_prefix::common_prefix;

/// How the replies were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplySource {
    /// By rendering the conversation up to each of them; also of rows that are no conversations.
    #[default]
    Prefixes,
    /// The template renders a reply otherwise once more follows, so they are its `{% generation %}` blocks.
    GenerationBlocks,
    /// As before, but the template has no such blocks: only the last reply is known.
    LastReply,
}

/// The replies of a conversation, as byte ranges of its text: each with the token that ends its turn, without the white
/// space after it. The last range is the last reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplySpans {
    pub spans: Vec<Range<usize>>,
    pub source: ReplySource,
}

/// What finds the replies of one conversation.
pub(crate) struct ReplyFinder<'a> {
    pub template: &'a ChatTemplate,
    pub conversation: &'a Conversation,
    /// The whole conversation, rendered without a generation prompt.
    pub rendered: &'a RenderedChat,
    /// The texts of the special tokens.
    pub special: &'a [String],
    /// The texts of those at which generation stops.
    pub stops: &'a [String],
}

impl ReplyFinder<'_> {
    /// The replies; None if there is none, or the last one is not in the text.
    pub fn find(&self) -> Option<ReplySpans> {
        let Conversation { messages, given, .. } = self.conversation;
        let last = self.conversation.last_reply().filter(|last| last >= given)?;
        let replies: Vec<usize> = (0..=last).filter(|&reply| messages[reply].is_reply()).collect();
        let is_learned = |reply: usize| reply == last || (reply >= *given && !messages[reply].has_no_weight());
        let learned: Vec<bool> = replies.iter().map(|&reply| is_learned(reply)).collect();
        let last_span = self.span(last);
        let by_prefix =
            replies.iter().filter(|&&reply| reply < last && is_learned(reply)).map(|&reply| self.span(reply));
        let by_prefix: Option<Vec<_>> = by_prefix.chain([last_span.clone()]).collect();
        if let Some(spans) = by_prefix {
            return Some(ReplySpans { spans, source: ReplySource::Prefixes });
        }
        if let Some(spans) = blocks_of(&self.rendered.generated, &learned) {
            return Some(ReplySpans { spans, source: ReplySource::GenerationBlocks });
        }
        Some(ReplySpans { spans: vec![last_span?], source: ReplySource::LastReply })
    }

    /// The range of a reply, found by rendering the conversation up to it. None if that is no prefix of the whole.
    fn span(&self, reply: usize) -> Option<Range<usize>> {
        let whole = self.rendered.text.as_str();
        let prefix;
        let through = if reply + 1 == self.conversation.messages.len() {
            whole
        } else {
            prefix = self.render(reply + 1, false)?;
            &prefix
        };
        let message = &self.conversation.messages[reply];
        let content = message.content.trim();
        let start = self.start(reply, through, content)?;
        let end = start + self.reply_len(reply, &through[start..], content);
        let stop = self.stop_after(through, end).filter(|&stop| whole.starts_with(&through[..stop]));
        let end = stop.unwrap_or(end);
        whole.starts_with(&through[..end]).then_some(start..end)
    }

    /// Where the first token ends that generation stops at, among the special tokens that follow `end`: a reply that ends
    /// with another one is not over there. None if it does end with one, or none follows.
    fn stop_after(&self, text: &str, mut end: usize) -> Option<usize> {
        if self.stops.iter().any(|stop| text[..end].ends_with(stop.as_str())) {
            return None;
        }
        loop {
            let start = end + text[end..].len() - text[end..].trim_start().len();
            end = start + self.special_at_start(&text[start..])?;
            if self.stops.iter().any(|stop| *stop == text[start..end]) {
                return Some(end);
            }
        }
    }

    /// Where a reply begins: after the generation prompt or, if the template writes another one before finished replies,
    /// where the reply's content is.
    fn start(&self, reply: usize, through: &str, content: &str) -> Option<usize> {
        let prompt = self.render(reply, true).unwrap_or_default();
        if !prompt.is_empty() && through.starts_with(&prompt) {
            return Some(prompt.len());
        }
        let before = self.render(reply, false).unwrap_or_default();
        let (from, near) = (common_prefix(through, &before), common_prefix(through, &prompt));
        if content.is_empty() {
            return Some(near.max(from));
        }
        let places = || through[from..].match_indices(content).map(|(at, _)| from + at);
        places().take_while(|&at| at <= near).last().or_else(|| places().next())
    }

    /// The length of a reply at the start of `text`, which ends with it but for white space: with calls of functions, and
    /// with the token that ends its turn. Some templates begin the next turn after that.
    fn reply_len(&self, reply: usize, text: &str, content: &str) -> usize {
        let whole = text.trim_end();
        // Without content all that is there, such as calls of tools, is the reply.
        if content.is_empty() {
            return whole.len();
        }
        // Reasoning before the content may have its text too.
        let contents = text.match_indices(content).map(|(at, _)| at + content.len());
        let Some(turn_end) = contents.filter_map(|end| self.special_after(text, end)).last() else {
            return whole.len();
        };
        let rest = text[turn_end..].trim();
        let is_complete = self.special.iter().any(|token| whole.ends_with(token.as_str()));
        let has_next_turn = || !is_complete || self.is_generation_prompt(rest, reply);
        let calls = self.conversation.messages[reply].calls_functions();
        if self.is_special_alone(rest) || (!calls && has_next_turn()) { turn_end } else { whole.len() }
    }

    /// Whether a text is what a template writes before the reply: some write it after each conversation, asked or not.
    fn is_generation_prompt(&self, text: &str, reply: usize) -> bool {
        !text.is_empty() && self.render(reply, true).is_some_and(|prompt| prompt.trim_end().ends_with(text))
    }

    /// Where the special token ends that a text has at `at`, after white space, if it has one.
    fn special_after(&self, text: &str, at: usize) -> Option<usize> {
        let rest = text[at..].trim_start();
        self.special_at_start(rest).map(|length| text.len() - rest.len() + length)
    }

    /// The length of the special token that a text begins with, if it does; the longest of several.
    fn special_at_start(&self, text: &str) -> Option<usize> {
        self.special.iter().filter(|token| text.starts_with(token.as_str())).map(String::len).max()
    }

    /// Whether a text is nothing but special tokens and white space.
    fn is_special_alone(&self, text: &str) -> bool {
        let mut rest = text.trim_start();
        while let Some(length) = self.special_at_start(rest) {
            rest = rest[length..].trim_start();
        }
        rest.is_empty()
    }

    /// The first `messages` messages as text; None if the template refuses them.
    fn render(&self, messages: usize, add_generation_prompt: bool) -> Option<String> {
        let chat = self.template.render(&self.conversation.prefix(messages), add_generation_prompt);
        chat.ok().map(|chat| chat.text)
    }
}

/// The blocks of the replies that are learned. Blocks do not say whose they are: None where there is not one for each reply,
/// unless every reply is learned.
fn blocks_of(blocks: &[Range<usize>], learned: &[bool]) -> Option<Vec<Range<usize>>> {
    if blocks.is_empty() || (blocks.len() != learned.len() && learned.contains(&false)) {
        return None;
    }
    let is_learned = |reply: usize| learned.get(reply).copied().unwrap_or(true);
    Some(blocks.iter().enumerate().filter(|(reply, _)| is_learned(*reply)).map(|(_, block)| block.clone()).collect())
}
