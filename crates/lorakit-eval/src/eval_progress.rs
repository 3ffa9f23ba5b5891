//! How far an evaluation has come, told to whoever draws it.

/// What is being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalStage {
    /// The likelihood of answers.
    Likelihood,
    /// The likelihood of every choice.
    Choices,
    /// Text.
    Generation,
}

/// How many of a stage's rows are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalProgress {
    /// What is being computed.
    pub stage: EvalStage,
    /// Rows that are done.
    pub done: usize,
    /// Rows that there are.
    pub total: usize,
}
