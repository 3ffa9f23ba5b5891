//! What a merge returns: an adapter, and how much of the untruncated merge it retains.

use lorakit_adapter::Adapter;

/// The adapter that a merge made, with a line about each of its modules.
#[derive(Clone, Debug)]
pub struct Merged {
    /// One adapter with a plain `alpha / r` scale, whatever the experts' scales.
    pub adapter: Adapter,
    /// The modules in the order of their paths.
    pub report: Vec<ModuleReport>,
}

/// How much of the untruncated merge is in a module of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleReport {
    /// The module's path.
    pub module: String,
    /// The rank of the result there.
    pub rank: usize,
    /// The share of the squared Frobenius norm that was kept; 1 if nothing was cut off.
    pub retained: f64,
    /// The Frobenius norm of what was cut off, relative to that of the whole; 0 if nothing was.
    pub error: f64,
}

/// The two numbers of [`ModuleReport`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Retained {
    pub retained: f64,
    pub error: f64,
}

impl Retained {
    pub(super) const ALL: Self = Self { retained: 1.0, error: 0.0 };

    /// Of the squared norm that is in the result and the one that is not.
    pub(super) fn of(inside: f64, outside: f64) -> Self {
        let all = inside + outside;
        if all == 0.0 {
            return Self::ALL;
        }
        Self { retained: inside / all, error: (outside / all).sqrt() }
    }
}
