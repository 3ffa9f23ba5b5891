//! How far an evaluation has come, told to whoever draws it.

/// What is being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The likelihood of answers.
    Likelihood,
    /// The likelihood of every choice.
    Choices,
    /// Text.
    Generation,
}

/// How many of a stage's rows are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being computed.
    pub stage: Stage,
    /// Rows that are done.
    pub done: usize,
    /// Rows that there are.
    pub total: usize,
}
