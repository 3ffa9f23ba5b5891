//! What can be wrong with a set of experts, a number of clusters, or a clusters file.

use std::path::PathBuf;

use crate::Space;

/// The error of another crate or of the caller's closure, kept whole for the chain of causes.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why experts could not be compared or clustered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] lorakit_format::FormatError),
    /// Two experts carry one name, so that a cluster's member list would not say which is meant.
    #[error("expert `{0}` is given twice; give each expert a name of its own")]
    DuplicateExpert(String),
    /// There is nothing to cluster.
    #[error("found {0} expert(s); clustering needs at least two")]
    TooFewExperts(usize),
    /// The caller's source of adapters failed.
    #[error("expert `{expert}` could not be read")]
    Expert {
        /// Its name.
        expert: String,
        /// What the source said.
        source: Cause,
    },
    /// The common starting A of a module is missing, or does not fit.
    #[error("the starting A of module `{module}` cannot be used")]
    Start {
        /// The module path.
        module: String,
        /// What the source said.
        source: Cause,
    },
    /// The change since the start was asked for, and nobody knows the start.
    #[error(
        "the space `change` needs the starting A that all experts share, and none is known here; use --space delta"
    )]
    NoStart,
    /// Flattened parameters of these two experts are not coordinates of one space.
    #[error(
        "experts `{first}` and `{second}` cannot be compared in the space `{space}`: module `{module}` {difference}; \
         use --space delta, which compares any ranks and modules"
    )]
    NotAligned {
        /// The space that was asked for.
        space: Space,
        /// The expert that sets the shape.
        first: String,
        /// The expert that differs from it.
        second: String,
        /// The module path where they differ.
        module: String,
        /// How they differ, as the rest of a sentence.
        difference: String,
    },
    /// One module path, two widths: the experts belong to different base models.
    #[error(
        "module `{module}` is [{}, {}] in expert `{first}` and [{}, {}] in expert `{second}` (output, input); \
         expected experts of one base model",
        first_shape[0], first_shape[1], second_shape[0], second_shape[1]
    )]
    DifferentBase {
        /// The module path.
        module: String,
        /// The expert that sets the shape.
        first: String,
        /// The expert that differs from it.
        second: String,
        /// Output and input width in the first.
        first_shape: [usize; 2],
        /// Output and input width in the second.
        second_shape: [usize; 2],
    },
    /// A value overflowed or was never a number.
    #[error("{what} `{name}` has NaN, infinite or overflowing values; expected finite ones")]
    NotFinite {
        /// What kind of thing has the name: an expert, an embedding.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// k = 0.
    #[error("k is 0; expected at least one cluster")]
    ZeroClusters,
    /// More clusters than experts.
    #[error("k is {k} and there are {experts} experts; expected k of at most {experts}")]
    TooManyClusters {
        /// The number of clusters asked for.
        k: usize,
        /// The number of experts.
        experts: usize,
    },
    /// More clusters than points that differ: some cluster would have to be empty, or to split equals.
    #[error(
        "k is {k} and only {distinct} of the {points} experts differ from each other; expected k of at most {distinct}"
    )]
    TooFewDistinct {
        /// The number of clusters asked for.
        k: usize,
        /// The number of points.
        points: usize,
        /// How many of them are different.
        distinct: usize,
    },
    /// A setting outside its range.
    #[error("{name} is {value}; expected {expected}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What was found.
        value: String,
        /// The range.
        expected: &'static str,
    },
    /// Embedding vectors of different lengths.
    #[error("the embedding of expert `{expert}` has {found} values; expected {expected}, as the others have")]
    EmbeddingLength {
        /// The expert whose vector differs.
        expert: String,
        /// Its length.
        found: usize,
        /// The first expert's length.
        expected: usize,
    },
    /// Two clusterings that do not cover the same experts have no Rand index.
    #[error("the clusterings do not cover the same experts: `{0}` is in one alone")]
    DifferentExperts(String),
    /// A numerical routine of a dependency gave up.
    #[error("{0} failed")]
    Numerical(&'static str),
    /// A clusters file that cannot be read, written, or believed.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected.
        message: String,
    },
    /// Clusters that contradict themselves.
    #[error("{0}")]
    Inconsistent(String),
}
