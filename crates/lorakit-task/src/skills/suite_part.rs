//! The three parts of the suite.

/// A part of `suite:skills`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SuitePart {
    /// Four tasks of each family, for training experts.
    Training,
    /// Two further tasks of each family.
    HeldOut,
    /// Tasks that apply two skills in sequence.
    Compositions,
}

impl SuitePart {
    /// Every part.
    pub const ALL: [SuitePart; 3] = [SuitePart::Training, SuitePart::HeldOut, SuitePart::Compositions];

    /// The name in `suite:skills/NAME`.
    pub fn name(self) -> &'static str {
        match self {
            SuitePart::Training => "training",
            SuitePart::HeldOut => "heldout",
            SuitePart::Compositions => "compositions",
        }
    }
}
