//! The merges that work value by value, as rows of one table.
//!
//! What the papers and tools call by a dozen names are choices of five things: which values are merged, which of them
//! are dropped, what makes up for those, who decides on a sign, and what the sum is divided by. The idea of one
//! implementation for all is mergekit's.

use Consensus::{Elected, Mean, Sum};
use Convention::{Mergekit, Paper, Peft};
use Space::{Deltas, Factors};
use std::fmt;
use std::str::FromStr;

/// Whose names and arithmetic a merge follows; they differ in more than names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Convention {
    /// Hugging Face PEFT's `add_weighted_adapter` (<https://github.com/huggingface/peft>).
    Peft,
    /// mergekit's (<https://github.com/arcee-ai/mergekit>), with deltas for differences of models.
    Mergekit,
    /// The papers'; where adapters are merged as A and B, that of Towards Modular LLMs
    /// (<https://arxiv.org/abs/2405.11157>).
    Paper,
}

/// Which values are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// A and B, each for itself. The product then has terms of one expert's B with another's A, and depends on a
    /// choice that nobody made: `(B R^-1, R A)` is the same adapter, and merges to something else.
    Factors(Share),
    /// The deltas `s B A`.
    Deltas,
}

/// How an expert's weight w and scale s are shared out to its A and its B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
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
    /// Each with probability `1 - density` (DARE).
    Random,
}

/// Among which values the largest are sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// A matrix.
    Matrix,
    /// All matrices of an expert.
    Expert,
}

/// What makes up for the values that were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rescale {
    None,
    /// `1 / density`, which keeps the expectation.
    Density,
    /// Whatever keeps the sum of magnitudes.
    Magnitudes,
}

/// How the experts' values `x_i` become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consensus {
    /// `sum w_i x_i`.
    Sum,
    /// `sum w_i x_i / sum w_i`.
    Mean,
    /// The sum over those alone whose sign is the elected one: that of `sum x_i`, and plus for zero.
    Elected(Ballot, Divide),
}

/// Whose values are counted in an election, and whose sign has to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ballot {
    /// `x_i`.
    Plain,
    /// `w_i x_i`.
    Weighted,
}

/// What an elected sum is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Divide {
    None,
    /// The number of those that agree.
    Count,
    /// The weights of those that agree.
    Weights,
}

/// A merge that works value by value.
#[derive(Debug, PartialEq)]
pub(super) struct Recipe {
    pub name: &'static str,
    pub convention: Convention,
    pub space: Space,
    pub sparsify: Sparsify,
    pub rescale: Rescale,
    pub consensus: Consensus,
    /// The share of values kept, where none is given.
    pub density: f64,
}

const fn recipe(
    (name, convention): (&'static str, Convention),
    space: Space,
    sparsify: (Sparsify, f64, Rescale),
    consensus: Consensus,
) -> Recipe {
    let (sparsify, density, rescale) = sparsify;
    Recipe { name, convention, space, sparsify, rescale, consensus, density }
}

const ALL: (Sparsify, f64, Rescale) = (Sparsify::None, 1.0, Rescale::None);
const TRIM: Sparsify = Sparsify::Magnitude(Scope::Matrix);
const TRIM_EXPERT: Sparsify = Sparsify::Magnitude(Scope::Expert);
const ROOT: Space = Factors(Share::Root);
const BOTH: Space = Factors(Share::Both);
/// TIES as PEFT and its authors have it: unweighted votes, the mean of those that agree.
const TIES: Consensus = Elected(Ballot::Plain, Divide::Count);

/// All of them. The first row of a name is what the name alone means.
pub(super) static RECIPES: &[Recipe] = &[
    recipe(("linear", Peft), ROOT, ALL, Sum),
    recipe(("linear", Mergekit), Deltas, ALL, Mean),
    recipe(("linear", Paper), BOTH, ALL, Sum),
    recipe(("task_arithmetic", Paper), Deltas, ALL, Sum),
    recipe(("task_arithmetic", Peft), Deltas, ALL, Sum),
    recipe(("task_arithmetic", Mergekit), Deltas, ALL, Sum),
    recipe(("ties", Peft), ROOT, (TRIM, 0.5, Rescale::None), TIES),
    recipe(("ties", Mergekit), Deltas, (TRIM, 1.0, Rescale::None), Elected(Ballot::Weighted, Divide::Weights)),
    recipe(("ties", Paper), BOTH, (TRIM_EXPERT, 0.2, Rescale::None), TIES),
    recipe(("ties_svd", Peft), Deltas, (TRIM, 0.5, Rescale::None), TIES),
    recipe(("ties_svd", Paper), Deltas, (TRIM_EXPERT, 0.2, Rescale::None), TIES),
    recipe(("dare_linear", Peft), ROOT, (Sparsify::Random, 0.5, Rescale::Density), Sum),
    recipe(("dare_linear", Mergekit), Deltas, (Sparsify::Random, 1.0, Rescale::Magnitudes), Sum),
    recipe(("dare_linear", Paper), Deltas, (Sparsify::Random, 0.1, Rescale::Density), Sum),
    recipe(("dare_linear_svd", Peft), Deltas, (Sparsify::Random, 0.5, Rescale::Density), Sum),
    recipe(("dare_ties", Peft), ROOT, (Sparsify::Random, 0.5, Rescale::Density), TIES),
    recipe(
        ("dare_ties", Mergekit),
        Deltas,
        (Sparsify::Random, 1.0, Rescale::Magnitudes),
        Elected(Ballot::Weighted, Divide::None),
    ),
    recipe(("dare_ties", Paper), Deltas, (Sparsify::Random, 0.1, Rescale::Density), TIES),
    recipe(("dare_ties_svd", Peft), Deltas, (Sparsify::Random, 0.5, Rescale::Density), TIES),
    recipe(("magnitude_prune", Peft), ROOT, (TRIM, 0.5, Rescale::None), Sum),
    recipe(("magnitude_prune", Mergekit), Deltas, (TRIM, 1.0, Rescale::None), Sum),
    recipe(("magnitude_prune_svd", Peft), Deltas, (TRIM, 0.5, Rescale::None), Sum),
    recipe(("breadcrumbs", Mergekit), Deltas, (Sparsify::Outliers, 1.0, Rescale::None), Sum),
    recipe(
        ("breadcrumbs_ties", Mergekit),
        Deltas,
        (Sparsify::Outliers, 1.0, Rescale::None),
        Elected(Ballot::Weighted, Divide::None),
    ),
];

impl Recipe {
    /// The row of a name and, where one is given, of a convention.
    pub(super) fn find(name: &str, convention: Option<Convention>) -> Option<&'static Self> {
        RECIPES.iter().find(|row| row.name == name && convention.is_none_or(|asked| asked == row.convention))
    }

    /// The conventions that a name has.
    pub(super) fn conventions(name: &str) -> impl Iterator<Item = Convention> {
        RECIPES.iter().filter(move |row| row.name == name).map(|row| row.convention)
    }

    pub(super) fn is_random(&self) -> bool {
        self.sparsify == Sparsify::Random
    }

    pub(super) fn elects(&self) -> bool {
        matches!(self.consensus, Elected(..))
    }

    /// Whether each expert's values enter as they are, so that the sum of deltas needs no dense matrix.
    pub(super) fn is_plain_sum(&self) -> bool {
        self.space == Deltas && self.sparsify == Sparsify::None && matches!(self.consensus, Sum | Mean)
    }
}

impl FromStr for Convention {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "peft" => Ok(Self::Peft),
            "mergekit" => Ok(Self::Mergekit),
            "paper" => Ok(Self::Paper),
            _ => Err("peft, mergekit or paper"),
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "peft",
            Self::Mergekit => "mergekit",
            Self::Paper => "paper",
        })
    }
}
