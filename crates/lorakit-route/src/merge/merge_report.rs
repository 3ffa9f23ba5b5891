//! The result of a merge: an adapter, and how much of the untruncated merge it retains.

use lorakit_adapter::Adapter;

/// A merged adapter, with a report on each of its modules.
#[derive(Clone, Debug)]
pub struct Merged {
    /// One adapter with a plain `alpha / r` scale, whatever the experts' scales.
    pub adapter: Adapter,
    /// The modules, sorted by path.
    pub report: Vec<ModuleReport>,
}

/// How much of the untruncated merge a module of the result retains.
///
/// Singular directions that `tsv` drops count as truncated. Where dropping is the method itself, such as the trimming of `ties`
/// or the clustering of `lego`, nothing does.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleReport {
    /// The module's path.
    pub module: String,
    /// The rank of the result there.
    pub rank: usize,
    /// The retained share of the squared Frobenius norm; 1 without truncation.
    pub retained: f64,
    /// The Frobenius norm of the truncation error, relative to that of the untruncated merge; 0 without truncation.
    pub error: f64,
}

/// The two numbers of [`ModuleReport`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Retained {
    pub share: f64,
    pub error: f64,
}

impl Retained {
    pub(super) const ALL: Self = Self { share: 1.0, error: 0.0 };

    /// From the retained and the lost squared norm.
    pub(super) fn of(inside: f64, outside: f64) -> Self {
        let all = inside + outside;
        if all == 0.0 {
            return Self::ALL;
        }
        Self { share: inside / all, error: (outside / all).sqrt() }
    }

    /// What two truncations in a row retain: `first`, then this one.
    pub(super) fn after(self, first: Self) -> Self {
        let [second, first_error] = [self.error, first.error].map(|error| error * error);
        Self { share: self.share * first.share, error: (first_error + (1.0 - first_error) * second).sqrt() }
    }
}
