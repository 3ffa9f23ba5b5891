//! Conversations, and the chat templates that render them as text.

pub(crate) mod chat_template;
pub(crate) mod conversation;
pub(crate) mod generation_block;
pub(crate) mod reply_span;
pub(crate) mod template_file;
