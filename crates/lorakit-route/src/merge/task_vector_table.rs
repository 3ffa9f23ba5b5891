//! A table of the merges that work value by value.
//!
//! The dozen methods of papers and tools are combinations of five choices: which values are merged, which of them are
//! dropped, how the others are rescaled, how signs are elected, and what the sum is divided by. As in mergekit, one
//! implementation serves them all.

use Consensus::{Elected, Mean, Sum};
use Convention::{Mergekit, Paper, Peft};
use FactorWeights::{Both, Root};
use MergeSpace::Deltas;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The implementation that a merge follows; they differ in arithmetic too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// Hugging Face PEFT's `add_weighted_adapter` (<https://github.com/huggingface/peft>).
    Peft,
    /// mergekit's (<https://github.com/arcee-ai/mergekit>), with deltas for differences of models.
    Mergekit,
    /// The papers'; if A and B are merged separately, that of Towards Modular LLMs
    /// (<https://arxiv.org/abs/2405.11157>).
    Paper,
}

/// Which values are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MergeSpace {
    /// A and B separately. The product then contains cross terms of one expert's B with another's A, and depends on the
    /// factorization: `(B R^-1, R A)` is the same adapter but merges to a different one. Ranks must be equal.
    Factors {
        weights: FactorWeights,
        /// The merge that takes any ranks.
        any_ranks: &'static str,
    },
    /// The deltas `s B A`.
    Deltas,
}

/// How an expert's weight w and scale s are split between A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FactorWeights {
    /// `sign(w s) sqrt|w s|` to A and `sqrt|w s|` to B, so that an expert's own term weighs `w s`.
    Root,
    /// `w` to A and `w s` to B, so that an expert's own term weighs `w^2 s`.
    Both,
}

/// Which values are set to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sparsify {
    None,
    /// All but the `int(density n)` largest.
    Magnitude(Scope),
    /// The `int(gamma n)` largest as well as the smallest, so that `int(density n)` are left (breadcrumbs).
    Outliers,
    /// Random values, each with probability `1 - density` (DARE).
    Random,
}

/// The set of values among which the largest are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// One matrix.
    Matrix,
    /// All matrices of an expert.
    Expert,
}

/// How the remaining values are rescaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rescale {
    None,
    /// `1 / density`, which keeps the expectation.
    Density,
    /// The factor that keeps the sum of magnitudes.
    Magnitudes,
}

/// How the experts' values `x_i` are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consensus {
    /// `sum w_i x_i`.
    Sum,
    /// `sum w_i x_i / sum w_i`.
    Mean,
    /// The sum over the values whose sign is the elected one: that of `sum x_i`, or plus for zero.
    Elected(SignVote, Divisor),
}

/// The values that vote in an election and whose signs have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignVote {
    /// `x_i`.
    Plain,
    /// `w_i x_i`.
    Weighted,
}

/// What an elected sum is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Divisor {
    None,
    /// The number of agreeing experts.
    Count,
    /// The summed weights of the agreeing experts.
    Weights,
}

/// A merge that works value by value.
#[derive(Debug, PartialEq)]
pub(super) struct TaskVectorMethod {
    pub name: &'static str,
    pub convention: Convention,
    pub space: MergeSpace,
    pub sparsify: Sparsify,
    pub rescale: Rescale,
    pub consensus: Consensus,
    /// The default share of values kept.
    pub density: f64,
    /// Whether it averages agreeing experts or has its own scale, so that weights of 1 are natural.
    pub averages: bool,
}

const fn method(
    (name, convention): (&'static str, Convention),
    space: MergeSpace,
    sparsify: (Sparsify, f64, Rescale),
    consensus: Consensus,
) -> TaskVectorMethod {
    let (sparsify, density, rescale) = sparsify;
    let averages = match consensus {
        Sum | Elected(_, Divisor::None) => false,
        Mean | Elected(_, Divisor::Count | Divisor::Weights) => true,
    };
    TaskVectorMethod { name, convention, space, sparsify, rescale, consensus, density, averages }
}

/// Task arithmetic, whose scale is a part of the method.
const fn task_arithmetic(convention: Convention) -> TaskVectorMethod {
    TaskVectorMethod { averages: true, ..method(("task_arithmetic", convention), Deltas, ALL, Sum) }
}

const fn factors(weights: FactorWeights, any_ranks: &'static str) -> MergeSpace {
    MergeSpace::Factors { weights, any_ranks }
}

const ALL: (Sparsify, f64, Rescale) = (Sparsify::None, 1.0, Rescale::None);
const TRIM: Sparsify = Sparsify::Magnitude(Scope::Matrix);
const TRIM_EXPERT: Sparsify = Sparsify::Magnitude(Scope::Expert);
/// TIES as in PEFT and its authors' code: unweighted votes, and the mean of agreeing values.
const TIES: Consensus = Elected(SignVote::Plain, Divisor::Count);

const LINEAR_OF_PEFT: TaskVectorMethod = method(("linear", Peft), factors(Root, "cat or svd"), ALL, Sum);
const LINEAR_OF_PAPER: TaskVectorMethod = method(("linear", Paper), factors(Both, "cat or svd"), ALL, Sum);
const TIES_SVD: TaskVectorMethod = method(("ties_svd", Peft), Deltas, (TRIM, 0.5, Rescale::None), TIES);

/// All merges. The first row of a name is its default convention.
pub(super) static TASK_VECTOR_METHODS: &[TaskVectorMethod] = &[
    LINEAR_OF_PEFT,
    method(("linear", Mergekit), Deltas, ALL, Mean),
    LINEAR_OF_PAPER,
    task_arithmetic(Paper),
    task_arithmetic(Peft),
    task_arithmetic(Mergekit),
    method(("ties", Peft), factors(Root, "ties_svd"), (TRIM, 0.5, Rescale::None), TIES),
    method(("ties", Mergekit), Deltas, (TRIM, 1.0, Rescale::None), Elected(SignVote::Weighted, Divisor::Weights)),
    method(("ties", Paper), factors(Both, "ties_svd"), (TRIM_EXPERT, 0.2, Rescale::None), TIES),
    TIES_SVD,
    method(("ties_svd", Paper), Deltas, (TRIM_EXPERT, 0.2, Rescale::None), TIES),
    method(("dare_linear", Peft), factors(Root, "dare_linear_svd"), (Sparsify::Random, 0.5, Rescale::Density), Sum),
    method(("dare_linear", Mergekit), Deltas, (Sparsify::Random, 1.0, Rescale::Magnitudes), Sum),
    method(("dare_linear", Paper), Deltas, (Sparsify::Random, 0.1, Rescale::Density), Sum),
    method(("dare_linear_svd", Peft), Deltas, (Sparsify::Random, 0.5, Rescale::Density), Sum),
    method(("dare_ties", Peft), factors(Root, "dare_ties_svd"), (Sparsify::Random, 0.5, Rescale::Density), TIES),
    method(
        ("dare_ties", Mergekit),
        Deltas,
        (Sparsify::Random, 1.0, Rescale::Magnitudes),
        Elected(SignVote::Weighted, Divisor::None),
    ),
    method(("dare_ties", Paper), Deltas, (Sparsify::Random, 0.1, Rescale::Density), TIES),
    method(("dare_ties_svd", Peft), Deltas, (Sparsify::Random, 0.5, Rescale::Density), TIES),
    method(("magnitude_prune", Peft), factors(Root, "magnitude_prune_svd"), (TRIM, 0.5, Rescale::None), Sum),
    method(("magnitude_prune", Mergekit), Deltas, (TRIM, 1.0, Rescale::None), Sum),
    method(("magnitude_prune_svd", Peft), Deltas, (TRIM, 0.5, Rescale::None), Sum),
    method(("breadcrumbs", Mergekit), Deltas, (Sparsify::Outliers, 1.0, Rescale::None), Sum),
    method(
        ("breadcrumbs_ties", Mergekit),
        Deltas,
        (Sparsify::Outliers, 1.0, Rescale::None),
        Elected(SignVote::Weighted, Divisor::None),
    ),
];

impl TaskVectorMethod {
    /// The row of a name and, if given, of a convention.
    pub(super) fn find(name: &str, convention: Option<&str>) -> Option<&'static Self> {
        let asked = |row: &Self| convention.is_none_or(|asked| asked == row.convention.name());
        TASK_VECTOR_METHODS.iter().find(|row| row.name == name && asked(row))
    }

    /// `linear`, as in PEFT.
    pub(super) fn linear_of_peft() -> &'static Self {
        &LINEAR_OF_PEFT
    }

    /// `linear:convention=paper`.
    pub(super) fn linear_of_paper() -> &'static Self {
        &LINEAR_OF_PAPER
    }

    /// `ties_svd`, as in PEFT.
    pub(super) fn ties_svd() -> &'static Self {
        &TIES_SVD
    }

    /// The conventions that a name has.
    pub(super) fn conventions(name: &str) -> impl Iterator<Item = Convention> {
        TASK_VECTOR_METHODS.iter().filter(move |row| row.name == name).map(|row| row.convention)
    }

    pub(super) fn is_random(&self) -> bool {
        self.sparsify == Sparsify::Random
    }

    pub(super) fn elects(&self) -> bool {
        matches!(self.consensus, Elected(..))
    }

    /// Whether the experts' values are summed unchanged, so that no dense matrix is needed.
    pub(super) fn is_plain_sum(&self) -> bool {
        self.space == Deltas && self.sparsify == Sparsify::None && matches!(self.consensus, Sum | Mean)
    }
}

impl Convention {
    /// The name as it is typed.
    fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Mergekit => "mergekit",
            Self::Paper => "paper",
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}
