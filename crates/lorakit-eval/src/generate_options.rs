//! How text is generated.

use lorakit_model::sampling::SamplingOptions;

use crate::patched_model::PatchedModel;

/// How text is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Maximum number of new tokens.
    pub max_new_tokens: usize,
    /// Strings before which the text ends.
    pub stop: Vec<String>,
    /// How each token is selected.
    pub sampling: SamplingOptions,
    /// The seed of sampling. What is drawn depends on the seed, the prompt's number, the text's number among those of its
    /// prompt, and the step: not on other prompts.
    pub seed: u64,
    /// The number of the first prompt.
    pub first_prompt: usize,
    /// The number of texts for each prompt.
    pub samples: usize,
    /// Maximum number of texts that grow at a time.
    pub max_rows: usize,
    /// Maximum tokens per forward: longer prompts are read in parts.
    pub batch_tokens: usize,
    /// Maximum memory for cached keys and values, in bytes, unless a single text needs more. Texts wait for room in it.
    pub cache_bytes: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            seed: 0,
            first_prompt: 0,
            samples: 1,
            max_rows: 64,
            batch_tokens: 2048,
            cache_bytes: 1 << 30,
        }
    }
}

impl GenerateOptions {
    /// The most tokens that a prompt and its text have.
    pub(crate) fn capacity(&self, prompt: &[u32], model: &PatchedModel) -> usize {
        prompt.len().saturating_add(self.max_new_tokens).min(model.max_length())
    }
}
