//! What can be wrong with a router, or with a library that is to be routed.

use std::fmt::Display;

/// The result of everything in this crate that can fail.
pub type Result<T, E = RouteError> = std::result::Result<T, E>;

/// Why a library cannot be routed as was asked. Each message names the thing and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// An adapter changes a module that the base does not have, or that no site carries.
    #[error(
        "the expert {expert} has the module {module}, which no site of this base has (a module there is {example}): was it trained on another base?"
    )]
    UnknownModule {
        /// The expert's name.
        expert: String,
        /// The module's path.
        module: String,
        /// The path of a module that the base has.
        example: String,
    },
    /// An adapter's matrices do not have the widths of the module that they change.
    #[error(
        "the expert {expert} changes {module} as {found:?} features (in, out), and this base has {expected:?} there: was it trained on another base?"
    )]
    Widths {
        /// The expert's name.
        expert: String,
        /// The module's path.
        module: String,
        /// Input and output of the adapter.
        found: (usize, usize),
        /// Input and output of the base.
        expected: (usize, usize),
    },
    /// Two experts have one name.
    #[error("two experts have the name {0}: names must differ")]
    SameName(String),
    /// A name that no expert has.
    #[error("no expert has the name {name}; there are: {known}")]
    UnknownExpert {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The oracle finds no expert for a task.
    #[error("no expert was trained on the task {task}, and none has its name; there are (with their tasks): {known}")]
    NoExpertForTask {
        /// The task's name.
        task: String,
        /// The experts with the tasks recorded for them.
        known: String,
    },
    /// The oracle finds more than one expert for a task.
    #[error("several experts were trained on the task {task}: {experts}; name the one to use, as in expert:{first}")]
    SeveralExpertsForTask {
        /// The task's name.
        task: String,
        /// The experts that record it.
        experts: String,
        /// The first of them.
        first: String,
    },
    /// The oracle was not told which task is at hand.
    #[error("the oracle needs to know the task at hand, and was told none")]
    NoTask,
    /// Mixing A and B separately adds A's of different rank.
    #[error(
        "mixing=separate adds the A's of {module}, whose ranks differ: {} has rank {}, {} has rank {}; use mixing=outputs, which takes any ranks",
        .first.0, .first.1, .second.0, .second.1
    )]
    UnequalRanks {
        /// The module's path.
        module: String,
        /// An expert and its rank.
        first: (String, usize),
        /// An expert whose rank is another.
        second: (String, usize),
    },
    /// LoraHub as published takes experts of one form.
    #[error(
        "lorahub:mode=as-published adds the A's and the B's of {module}, and the experts {first} and {second} differ there: {why}; lorahub without a mode takes any"
    )]
    AsPublished {
        /// The module's path.
        module: String,
        /// An expert.
        first: String,
        /// One that is otherwise.
        second: String,
        /// How they differ.
        why: String,
    },
    /// One prototype for a whole site needs one A there.
    #[error(
        "tie=site takes one A for the projections of site {site}, and those of the expert {expert} differ: use tie=none, which gives each projection its own prototype"
    )]
    UntiedA {
        /// The site's key.
        site: String,
        /// The expert's name.
        expert: String,
    },
    /// A router that is not known.
    #[error("unknown router {name:?}; known are: {known}")]
    UnknownRouter {
        /// The name as typed.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// Settings that a router does not have, or values that they cannot take.
    #[error("router {router}: {problem}; its settings, with their defaults: {known}")]
    Setting {
        /// The router's name.
        router: String,
        /// What is wrong.
        problem: String,
        /// The settings that the router has.
        known: String,
    },
    /// A router that learns was not given what it learned.
    #[error("the router {0} learns from rows, and was not given what it learned")]
    NothingLearned(String),
    /// What was learned does not fit the library.
    #[error(
        "what the router learned has no matrix {name} of the shape {expected:?} (it has {}): it belongs to another library",
        .found.map_or("none of that name".to_owned(), |shape| format!("one of {shape:?}"))
    )]
    Learned {
        /// The matrix's name.
        name: String,
        /// Rows and columns that it must have.
        expected: (usize, usize),
        /// What it has, where there is one.
        found: Option<(usize, usize)>,
    },
    /// A router learns from the rows of each expert, and one has none.
    #[error("no row of the expert {0} was seen: the router learns from rows of every expert's own tasks")]
    NoRows(String),
    /// How prompts of a task differ cannot be said of one.
    #[error(
        "{0} prompts to learn from, and no two of one task (temperature=auto sets a quarter of each task's aside, and at least one): give tasks of more rows, or rows=N with N at least 3"
    )]
    FewPrompts(usize),
    /// A response was no number.
    #[error(
        "the experts' responses to the prompts are not all finite numbers: check the library with `lorakit library check`, or take a wider --dtype"
    )]
    NoPattern,
    /// A survey was asked about rows other than those that it saw.
    #[error("the survey saw a pass over other rows")]
    OtherRows,
    /// Subtracting general knowledge by factors subtracts A's of different rank.
    #[error(
        "gks=factors subtracts the A's of {module}, whose ranks differ: {} has rank {}, {} has rank {}; use gks=deltas, which takes any ranks",
        .first.0, .first.1, .second.0, .second.1
    )]
    GksRanks {
        /// The module's path.
        module: String,
        /// The expert and its rank.
        first: (String, usize),
        /// A general expert whose rank is another.
        second: (String, usize),
    },
    /// What the adapter algebra refuses.
    #[error("{0}")]
    Adapter(String),
    /// What candle refuses.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What the adapter algebra refuses, as an error of this crate.
pub(crate) fn adapter(error: impl Into<anyhow::Error>) -> RouteError {
    RouteError::Adapter(format!("{:#}", error.into()))
}

/// Names in a row, for messages.
pub(crate) fn listed<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
