//! Options that say how rows become tokens.

use clap::Args;
use lorakit_task::{BosTokens, LossTokens, RowEncoding};

/// How rows become tokens.
#[derive(Args, Clone, Copy, Debug)]
pub struct RowEncodingArgs {
    /// Put rows of prompt and answer through the base's chat template, as conversations always are
    #[arg(long)]
    chat: bool,
    /// Which tokens count for the loss: every reply of a conversation (or the answer), the last reply, or all
    #[arg(long, value_name = "assistant|last|all", default_value_t = LossTokens::Assistant)]
    loss: LossTokens,
    /// Begin texts with BOS: auto, where the tokenizer or template puts it; or never
    #[arg(long, value_name = "auto|never", default_value_t = BosTokens::Auto)]
    bos: BosTokens,
}

/// How prompts, and rows that something is fitted to or that are embedded, become tokens.
#[derive(Args, Clone, Copy, Debug)]
pub struct PromptEncodingArgs {
    /// Apply the base's chat template to prompts, and to rows that are fitted to or embedded, as a user's message
    #[arg(long)]
    pub chat: bool,
    /// Begin texts with BOS: auto, where the tokenizer or template puts it; or never, as for experts that were trained with
    /// bos=never [default: auto]
    #[arg(long, value_name = "auto|never")]
    pub bos: Option<BosTokens>,
}

impl PromptEncodingArgs {
    /// The choices.
    pub fn encoding(&self) -> RowEncoding {
        let default = RowEncoding::default();
        RowEncoding { chat: self.chat, bos: self.bos.unwrap_or(default.bos), ..default }
    }
}

impl RowEncodingArgs {
    /// The choices.
    pub fn encoding(&self) -> RowEncoding {
        RowEncoding { chat: self.chat, loss: self.loss, bos: self.bos }
    }
}
