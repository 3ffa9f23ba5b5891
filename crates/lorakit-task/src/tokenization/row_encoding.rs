//! The choices in turning rows into tokens.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Result, TaskError};

/// How rows become tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowEncoding {
    /// Whether rows of prompt and answer go through the chat template too; conversations always do.
    pub chat: bool,
    /// Which tokens contribute to the loss.
    pub loss: LossTokens,
    /// Whether texts begin with BOS.
    pub bos: BosTokens,
}

/// Which tokens of a row contribute to the loss. The set is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossTokens {
    /// Of a conversation every reply, each with the token that ends its turn; of other rows the answer.
    #[default]
    Assistant,
    /// Of a conversation the last reply; of other rows the answer.
    Last,
    /// All, as TRL's default for conversations.
    All,
}

/// Whether texts begin with BOS. The set is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BosTokens {
    /// Where the tokenizer's post-processor or the chat template puts it.
    #[default]
    Auto,
    /// Never, as in the papers' tokenization.
    Never,
}

impl LossTokens {
    /// Every choice.
    pub const ALL: [LossTokens; 3] = [LossTokens::Assistant, LossTokens::Last, LossTokens::All];

    /// The name in settings and flags.
    pub fn name(self) -> &'static str {
        match self {
            LossTokens::Assistant => "assistant",
            LossTokens::Last => "last",
            LossTokens::All => "all",
        }
    }
}

impl BosTokens {
    /// Every choice.
    pub const ALL: [BosTokens; 2] = [BosTokens::Auto, BosTokens::Never];

    /// The name in settings and flags.
    pub fn name(self) -> &'static str {
        match self {
            BosTokens::Auto => "auto",
            BosTokens::Never => "never",
        }
    }
}

impl fmt::Display for LossTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for BosTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for LossTokens {
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self> {
        let found = LossTokens::ALL.into_iter().find(|choice| choice.name() == name);
        found.ok_or_else(|| unknown("loss", name, &LossTokens::ALL.map(LossTokens::name)))
    }
}

impl FromStr for BosTokens {
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self> {
        let found = BosTokens::ALL.into_iter().find(|choice| choice.name() == name);
        found.ok_or_else(|| unknown("bos", name, &BosTokens::ALL.map(BosTokens::name)))
    }
}

fn unknown(what: &'static str, name: &str, known: &[&str]) -> TaskError {
    TaskError::UnknownName { what, name: name.to_owned(), known: known.join(", ") }
}
