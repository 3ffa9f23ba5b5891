//! From text to tokens and back.

pub(crate) mod added_tokens;
pub(crate) mod byte_run;
pub(crate) mod choice_request;
pub(crate) mod conversation_tokens;
pub(crate) mod example;
pub(crate) mod gguf;
pub(crate) mod incremental_decoder;
pub(crate) mod pico_tokenizer;
pub(crate) mod reply_opening;
pub(crate) mod row_encoding;
pub(crate) mod row_layout;
pub(crate) mod special_tokens;
pub(crate) mod tokenizer;
pub(crate) mod tokenizer_class;
pub(crate) mod tokenizer_loading;
