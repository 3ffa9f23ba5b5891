//! Progress of an evaluation, for a callback.

/// What is being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalStage {
    /// The likelihood of answers.
    Likelihood,
    /// The likelihood of every choice.
    Choices,
    /// Generated text.
    Generation,
}

/// The number of finished rows of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalProgress {
    /// The stage.
    pub stage: EvalStage,
    /// Finished rows.
    pub done: usize,
    /// All rows.
    pub total: usize,
}
