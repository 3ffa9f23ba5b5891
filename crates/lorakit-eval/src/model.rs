//! What is scored: a base, its tokenizer, and what sits in its slots.

use lorakit_model::Base;
use lorakit_task::Vocabulary;

use crate::{Patches, Row};

/// A base with patches in its slots. How the patches choose their experts is theirs to know.
#[derive(Clone)]
pub struct Model<'a> {
    /// The base.
    pub base: &'a Base,
    /// The base's tokenizer.
    pub vocabulary: &'a Vocabulary,
    /// What sits in the base's slots; [`Patches::none`] for the base as it is.
    pub patches: &'a Patches,
    /// What every row carries for the patches to read: its one expert, or its weights.
    pub template: Row,
}

impl Model<'_> {
    /// The longest sequence that may be scored.
    pub(crate) fn max_length(&self) -> usize {
        self.base.config().max_positions
    }
}
