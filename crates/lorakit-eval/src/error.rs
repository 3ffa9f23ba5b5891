//! The errors of this crate.

use std::error::Error;
use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

/// The error of a caller's [`PromptRouting`](crate::PromptRouting).
pub type RoutingError = Box<dyn Error + Send + Sync>;

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The task that was being scored.
    #[error("task `{name}` ({})", path.display())]
    Task {
        /// The task's name.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What went wrong.
        source: Box<EvalError>,
    },
    /// The row that was being scored.
    #[error("row {row}")]
    Row {
        /// Its number, from one.
        row: usize,
        /// What went wrong.
        source: Box<EvalError>,
    },
    /// A limit that leaves no row.
    #[error("task `{name}`: a limit of 0 leaves no row to score")]
    NoRows {
        /// The task's name.
        name: String,
    },
    /// A row without choices in a choice task.
    #[error("row {row} has no choices")]
    NoChoices {
        /// Its number, from one.
        row: usize,
    },
    /// A choice that the tokenizer merges into its prompt.
    #[error("row {row}: the choice `{choice}` has no token of its own")]
    EmptyChoice {
        /// The row's number, from one.
        row: usize,
        /// The choice.
        choice: String,
    },
    /// The loss of a row is not finite.
    #[error("row {row}: the loss is {loss}; are all weights finite?")]
    NonFiniteLoss {
        /// The row's number, from one.
        row: usize,
        /// The loss.
        loss: f64,
    },
    /// The likelihood of a choice is not finite.
    #[error(
        "the log-likelihood of the choice `{choice}` is {log_likelihood}, its loss {loss}; are all weights finite?"
    )]
    NonFiniteChoice {
        /// The choice.
        choice: String,
        /// Its log-likelihood.
        log_likelihood: f64,
        /// Its loss per token.
        loss: f64,
    },
    /// The prompt that was being continued.
    #[error("prompt {prompt}")]
    Prompt {
        /// Its number, from one.
        prompt: usize,
        /// What went wrong.
        source: Box<EvalError>,
    },
    /// `max_new_tokens` is zero.
    #[error("max_new_tokens is 0; expected at least 1")]
    NoNewTokens,
    /// A prompt without tokens.
    #[error("prompt {prompt} has no tokens; begin it with the tokenizer's BOS or EOS")]
    EmptyPrompt {
        /// The prompt's number, from one.
        prompt: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "prompt {prompt} has {tokens} tokens, but the base's context holds {max_length} with the answer; shorten it"
    )]
    LongPrompt {
        /// The prompt's number, from one.
        prompt: usize,
        /// Its tokens.
        tokens: usize,
        /// The base's longest sequence.
        max_length: usize,
    },
    /// A row whose answer leaves no room for its prompt.
    #[error(
        "row {row}: nothing of its prompt would be left, since its answer alone has at least {answer} tokens and the \
         base's context holds {max_length}; remove the row, or use a base with a longer context"
    )]
    NoRoomForPrompt {
        /// The row's number, from one.
        row: usize,
        /// Tokens of the answer that fit.
        answer: usize,
        /// The base's longest sequence.
        max_length: usize,
    },
    /// A prompt routing that returned a wrong number of rows.
    #[error("the routing returned {found} rows for {expected} prompts")]
    RoutedRows {
        /// Rows returned.
        found: usize,
        /// Prompts given.
        expected: usize,
    },
    /// A prompt routing failed.
    #[error(transparent)]
    Routing(RoutingError),
    /// A text is not a results.json.
    #[error("not a results.json: expected {{\"results\": {{ROUTER: {{TASK: ...}}}}, ...}}")]
    ResultsFile(#[source] serde_json::Error),
    /// ROUGE-L could not be computed.
    #[error("ROUGE-L cannot be computed")]
    Rouge(#[source] RoutingError),
    /// A task, its rows or the tokenizer.
    #[error(transparent)]
    Tokens(#[from] lorakit_task::TaskError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A value is not representable as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}
