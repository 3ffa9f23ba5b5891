//! How a base's context is divided between a prompt and the tokens generated after it.

/// New tokens at most where the prompt alone fills the context.
const NEW_TOKENS_AFTER_CUT: usize = 16;

/// Room for a prompt and for new tokens in a base's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    /// Tokens of the prompt that are read, from its end.
    pub prompt: usize,
    /// Maximum number of new tokens.
    pub new_tokens: usize,
}

impl TokenBudget {
    /// The budget for a prompt of `prompt` tokens where `max_new_tokens` are asked for and the base supports `positions`.
    ///
    /// A prompt that leaves room for a token is kept whole; new tokens get the rest. One that does not fit is cut from the
    /// left to make room for a few tokens.
    pub fn new(prompt: usize, max_new_tokens: usize, positions: usize) -> Self {
        if prompt < positions {
            return Self { prompt, new_tokens: max_new_tokens.min(positions - prompt) };
        }
        let new_tokens = max_new_tokens.min((positions / 2).clamp(1, NEW_TOKENS_AFTER_CUT));
        Self { prompt: positions.saturating_sub(new_tokens).max(1), new_tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_fits_is_kept_whole() {
        let budget = |prompt, max_new_tokens, positions| {
            let budget = TokenBudget::new(prompt, max_new_tokens, positions);
            (budget.prompt, budget.new_tokens)
        };
        assert_eq!(budget(8, 256, 4096), (8, 256));
        assert_eq!(budget(8, 256, 256), (8, 248));
        assert_eq!(budget(8, 255, 256), (8, 248));
        assert_eq!(budget(255, 300, 256), (255, 1));
        assert_eq!(budget(300, 256, 256), (240, 16), "a prompt that does not fit is cut");
        assert_eq!(budget(256, 200, 256), (240, 16));
        assert_eq!(budget(300, 2, 256), (254, 2));
        assert_eq!(budget(5, 256, 1), (1, 1));
    }
}
