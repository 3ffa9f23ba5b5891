//! A generated text, and why it ended.

use serde::Serialize;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model generated EOS.
    Eos,
    /// The model generated a stop string, which is cut off.
    Stop,
    /// The maximum number of new tokens, or the base's context, is exhausted.
    Length,
}

/// The text that a model generated after a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GeneratedText {
    /// The text, without EOS and the stop string.
    pub text: String,
    /// The number of generated tokens, including EOS and a stop string.
    pub tokens: usize,
    /// Why it ended.
    pub finish: FinishReason,
}
