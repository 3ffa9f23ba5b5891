//! What can be wrong with a merge, or with adapters that are to be merged.

use crate::error::RouteError;

/// The result of everything that merges.
pub type Result<T, E = MergeError> = std::result::Result<T, E>;

/// Why adapters cannot be merged as was asked. Each message names the thing and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// No adapter was given.
    #[error("there is no expert to merge: name at least one")]
    NoExperts,
    /// The adapters that were given change nothing.
    #[error("none of the experts changes any module, so there is nothing to merge")]
    NoModules,
    /// Two experts have one name.
    #[error("two experts have the name {0}: names must differ, for they seed what is drawn")]
    SameName(String),
    /// Weights that do not belong to the experts one by one.
    #[error("{weights} weights{module} were given for {experts} experts: one each is needed")]
    Count {
        /// How many weights there are.
        weights: usize,
        /// How many experts there are.
        experts: usize,
        /// ` for MODULE`, where the weights are those of one module.
        module: String,
    },
    /// A weight that is not a finite number.
    #[error("the weight of the expert {expert} is {weight}: a finite number is needed")]
    Weight {
        /// The expert's name.
        expert: String,
        /// What was given.
        weight: f64,
    },
    /// A weight for a module that no expert changes.
    #[error("there are weights for the module {0}, which none of the experts changes")]
    UnknownModule(String),
    /// Two experts change one module, but not of one shape.
    #[error(
        "the experts differ in {module}: {} changes {:?} features (in, out), {} changes {:?}; were they trained on one base?",
        .first.0, .first.1, .second.0, .second.1
    )]
    Widths {
        /// The module's path.
        module: String,
        /// An expert with its input and output.
        first: (String, (usize, usize)),
        /// An expert that differs, with its input and output.
        second: (String, (usize, usize)),
    },
    /// Some experts keep weights as `[in, out]` and some do not.
    #[error("{0} and {1} differ in fan_in_fan_out: were they trained on one base?")]
    Orientation(String, String),
    /// A and B are merged separately, which takes equal ranks.
    #[error(
        "{method} merges A and B separately, and the ranks at {module} differ: {} has rank {}, {} has rank {}; use {instead}, which takes any ranks",
        .first.0, .first.1, .second.0, .second.1
    )]
    UnequalRanks {
        /// The merge's name.
        method: &'static str,
        /// The module's path.
        module: String,
        /// An expert and its rank.
        first: (String, usize),
        /// An expert whose rank is another.
        second: (String, usize),
        /// A merge that takes any ranks.
        instead: &'static str,
    },
    /// A weight of a base that the adapter's module does not fit.
    #[error("{module} was given {found} values of the base's weight; its update is [{output}, {input}]")]
    Weights {
        /// The module's path.
        module: String,
        /// How many values were given.
        found: usize,
        /// The update's output width.
        output: usize,
        /// The update's input width.
        input: usize,
    },
    /// A merge that is not known.
    #[error("unknown merge {name:?}; known are: {known}")]
    UnknownMerge {
        /// The name as typed.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// Settings that a merge does not have, or values that they cannot take.
    #[error("merge {merge}: {problem}; its settings, with their defaults: {known}")]
    Setting {
        /// The merge's name.
        merge: String,
        /// What is wrong.
        problem: String,
        /// The settings that the merge has.
        known: String,
    },
    /// A module for which the arithmetic gives no finite result.
    #[error("{module}: {problem}")]
    Arithmetic {
        /// The module's path.
        module: String,
        /// What is wrong.
        problem: String,
    },
}

impl MergeError {
    /// What reading settings refuses, said of a merge.
    pub(super) fn of_settings(error: RouteError) -> Self {
        match error {
            RouteError::Setting { router, problem, known } => Self::Setting { merge: router, problem, known },
            other => Self::Setting { merge: String::new(), problem: other.to_string(), known: String::new() },
        }
    }

    pub(super) fn arithmetic(module: &str, problem: impl ToString) -> Self {
        Self::Arithmetic { module: module.to_owned(), problem: problem.to_string() }
    }
}
