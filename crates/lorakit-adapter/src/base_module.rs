//! The modules of a base, as far as an adapter knows it.

/// What kind of module an adapter changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModuleKind {
    /// A linear module of a layer.
    #[default]
    Linear,
    /// The embedding: its input is a token, so that a LoRA's A, `[r, vocabulary]`, is a table of columns by token.
    Embedding,
    /// The head, a linear module that `all-linear` leaves out.
    LmHead,
}

/// A module of a base that an adapter can change.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseModule {
    /// The module's Hugging Face path.
    pub path: String,
    /// The number of its input features; of an embedding, the size of the vocabulary.
    pub input: usize,
    /// The number of its output features.
    pub output: usize,
    /// What kind of module it is.
    pub kind: ModuleKind,
}
