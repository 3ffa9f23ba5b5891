//! What can be wrong with experts, a number of clusters, or a clusters file.

use std::path::PathBuf;

use crate::comparison_space::ComparisonSpace;

/// An error of the caller's closures.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything in this crate that can fail.
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// Why experts could not be compared or clustered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] lorakit_format::FormatError),
    /// Two experts or tasks have one name.
    #[error("`{0}` is given twice; name it once")]
    DuplicateName(String),
    /// Fewer than two experts or tasks.
    #[error("found {0} experts or tasks; clustering needs at least two")]
    TooFewPoints(usize),
    /// The caller's closure failed to open an expert.
    #[error("expert `{expert}` could not be read")]
    Expert {
        /// Its name.
        expert: String,
        /// The closure's error.
        source: BoxError,
    },
    /// The common initial A of a module is missing, or does not fit.
    #[error("the initial A of module `{module}` cannot be used")]
    InitialA {
        /// The module path.
        module: String,
        /// The closure's error.
        source: BoxError,
    },
    /// The space `change` was asked for, and the initial A is not known.
    #[error("the space `change` needs the initial A that all experts share, and it is not known; use --space delta")]
    NoInitialA,
    /// The flattened parameters of two experts have different coordinates.
    #[error(
        "experts `{first}` and `{second}` cannot be compared in the space `{space}`: module `{module}` {difference}; \
         use --space delta, which compares any ranks and modules"
    )]
    NotAligned {
        /// The space asked for.
        space: ComparisonSpace,
        /// The expert with the expected shape.
        first: String,
        /// The expert that differs from it.
        second: String,
        /// The module path where they differ.
        module: String,
        /// How they differ: the rest of a sentence.
        difference: String,
    },
    /// One module has two shapes: the experts belong to different base models.
    #[error(
        "module `{module}` is [{}, {}] in expert `{first}` and [{}, {}] in expert `{second}` (output, input); \
         expected experts of one base model",
        first_shape[0], first_shape[1], second_shape[0], second_shape[1]
    )]
    DifferentBase {
        /// The module path.
        module: String,
        /// The expert with the expected shape.
        first: String,
        /// The expert that differs from it.
        second: String,
        /// Its output and input width in the first.
        first_shape: [usize; 2],
        /// Its output and input width in the second.
        second_shape: [usize; 2],
    },
    /// NaN or infinite values.
    #[error("{what} `{name}` has NaN or infinite values; expected finite ones")]
    NotFinite {
        /// What has the name: an embedding, a point.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An inner product that is not finite, of finite values. The text says of which experts.
    #[error(
        "the inner product of {0} overflows: values are finite, but too large; if training diverged, leave the expert out \
         with --experts"
    )]
    Overflow(String),
    /// No clusters.
    #[error("k is 0; expected at least one cluster")]
    ZeroClusters,
    /// More clusters than experts or tasks.
    #[error("k is {k}, but there are only {points} experts or tasks; expected k of at most {points}")]
    TooManyClusters {
        /// The number of clusters asked for.
        k: usize,
        /// The number of experts or tasks.
        points: usize,
    },
    /// More clusters than distinct points.
    #[error(
        "k is {k}, but only {distinct} of the {points} experts or tasks are distinct; expected k of at most {distinct}"
    )]
    TooFewDistinct {
        /// The number of clusters asked for.
        k: usize,
        /// The number of points.
        points: usize,
        /// How many of them are distinct.
        distinct: usize,
    },
    /// A setting out of range.
    #[error("`{name}` is {value}; expected {expected}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What was found.
        value: String,
        /// The range.
        expected: &'static str,
    },
    /// An embedding without values.
    #[error("the embedding of `{0}` has no values; expected at least one")]
    EmptyEmbedding(String),
    /// Embeddings of different lengths.
    #[error("the embedding of `{name}` has {found} values; expected {expected}, as the others have")]
    EmbeddingLength {
        /// The expert or task whose embedding differs.
        name: String,
        /// Its length.
        found: usize,
        /// The first one's length.
        expected: usize,
    },
    /// Two clusterings of different experts, which cannot be compared.
    #[error("the clusterings cover different experts or tasks: `{0}` is in only one")]
    DifferentNames(String),
    /// A numerical routine of a dependency failed.
    #[error("{0} failed")]
    Numerical(&'static str),
    /// A clusters file that is not JSON of the expected form.
    #[error("{}: expected {expected}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The expected form.
        expected: &'static str,
        /// What was found.
        source: serde_json::Error,
    },
    /// Contradictory clusters in a file.
    #[error("{}", path.display())]
    ClustersFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: Box<ClusterError>,
    },
    /// Contradictory arguments or clusters.
    #[error("{0}")]
    Inconsistent(String),
}
