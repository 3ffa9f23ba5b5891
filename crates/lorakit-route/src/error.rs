//! What can be wrong with a router, a merge, or the adapters that they are applied to.

use lorakit_adapter::AdapterError;
use lorakit_format::did_you_mean;
use std::error::Error;
use std::fmt::Display;

/// The result of everything in this crate that can fail.
pub type Result<T, E = RouteError> = std::result::Result<T, E>;

/// An expert's name with its rank, or with `(in, out)`.
type Named<T> = (String, T);

/// Why adapters cannot be routed or merged as was asked. Each message names the subject and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// A name that no method has.
    #[error("unknown {kind} `{name}`{}; expected one of {known}", did_you_mean(.name, .known))]
    UnknownMethod {
        /// What was named: a router, a merge, or a fitted merge.
        kind: &'static str,
        /// The name as typed.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// A setting that a method does not have, or a value that it cannot take.
    #[error("{method}: {problem}; its settings, with their defaults: {known}")]
    InvalidSetting {
        /// The method's name.
        method: String,
        /// What is wrong.
        problem: String,
        /// The settings that the method has.
        known: String,
    },
    /// An adapter changes a module that the base does not have, or that no site has.
    #[error(
        "the expert `{expert}` has the module `{module}`, which no site of this base has (a module there is `{example}`): was it trained on another base?"
    )]
    UnknownModule {
        /// The expert's name.
        expert: String,
        /// The module's path.
        module: String,
        /// The path of a module that the base has.
        example: String,
    },
    /// A method that fits weights of layers, and an adapter that changes the embedding or the head.
    #[error(
        "{method} fits weights in the layers alone, and the library changes `{module}`; use another method, or experts that leave `{module}` as it is"
    )]
    OutsideLayers {
        /// The method's name.
        method: String,
        /// The module outside the layers.
        module: String,
    },
    /// An adapter's matrices do not have the widths of the module that they change.
    #[error(
        "the expert `{expert}` changes `{module}` as {found:?} features (in, out), and this base has {expected:?} there: was it trained on another base?"
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
    #[error("two experts have the name `{0}`: names must differ")]
    SameName(String),
    /// A name that no expert has.
    #[error("no expert has the name `{name}`; there are: {known}")]
    UnknownExpert {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The oracle finds no expert for a task.
    #[error("no expert was trained on the task `{task}`, and none has its name; there are (with their tasks): {known}")]
    NoExpertForTask {
        /// The task's name.
        task: String,
        /// The experts with the tasks recorded for them.
        known: String,
    },
    /// The oracle finds more than one expert for a task.
    #[error("several experts were trained on the task `{task}`: {experts}; name the one to use, as in expert:{first}")]
    SeveralExpertsForTask {
        /// The task's name.
        task: String,
        /// The experts that record it.
        experts: String,
        /// The first of them.
        first: String,
    },
    /// The oracle was given no task.
    #[error("the oracle needs a task, and there is none here; use expert:NAME")]
    NoTask,
    /// Mixing A and B separately adds A's of different rank.
    #[error(
        "mixing=separate adds the A's of `{module}`, whose ranks differ: `{}` has rank {}, `{}` has rank {}; use mixing=outputs, which takes any ranks",
        .first.0, .first.1, .second.0, .second.1
    )]
    UnequalRanks {
        /// The module's path.
        module: String,
        /// An expert and its rank.
        first: Named<usize>,
        /// An expert whose rank is another.
        second: Named<usize>,
    },
    /// LoraHub as published takes experts of equal modules, ranks and scales.
    #[error(
        "lorahub:mode=as-published adds the A's and the B's of `{module}`, and the experts `{first}` and `{second}` differ there: {why}; lorahub without a mode takes any"
    )]
    AsPublished {
        /// The module's path.
        module: String,
        /// An expert.
        first: String,
        /// One that differs.
        second: String,
        /// How they differ.
        why: String,
    },
    /// One prototype for a whole site needs one A there.
    #[error(
        "tie=site takes one A for the projections of site `{site}`, and those of the expert `{expert}` differ: use tie=none, which gives each projection its own prototype"
    )]
    UntiedA {
        /// The site's key.
        site: String,
        /// The expert's name.
        expert: String,
    },
    /// A router that is fitted was not given its state.
    #[error("the router `{0}` is fitted to rows, and was not given what was fitted")]
    MissingState(String),
    /// The state of a router does not fit the library.
    #[error(
        "the router's state has no matrix `{name}` of the shape {expected:?} (it has {}): it belongs to another library",
        .found.map_or("none of that name".to_owned(), |shape| format!("one of {shape:?}"))
    )]
    StateMismatch {
        /// The matrix's name.
        name: String,
        /// Rows and columns that it must have.
        expected: (usize, usize),
        /// What it has, if there is one.
        found: Option<(usize, usize)>,
    },
    /// The state of a router names experts that the library does not have.
    #[error("the router's state has tasks of more than the {0} experts of this library")]
    StateExperts(usize),
    /// The state of `evidence` has a fallback that this version does not know.
    #[error("the router's state has the unknown fallback {0}, expected 0, 1 or 2; another version wrote it")]
    StateFallback(f32),
    /// A classifier reads another number of features than the base has.
    #[error("the classifier reads {expected} features, and the base has {found}")]
    Features {
        /// The features that the classifier reads.
        expected: usize,
        /// The features that the base has.
        found: usize,
    },
    /// A router is fitted to the rows of each expert, and one has none.
    #[error("no row of the expert `{0}` was seen: the router is fitted to rows of every expert's own tasks")]
    NoRows(String),
    /// The spread of a task's prompts cannot be estimated from one of them.
    #[error(
        "found {0} prompts to learn from, no two of them of one task: give tasks of more rows, or rows=N with N at least 2"
    )]
    FewPrompts(usize),
    /// No expert changes the module whose outputs LoGo compares.
    #[error("logo compares what the experts add to `{0}`, and none of them changes it; use another router")]
    NoOutputs(String),
    /// A response is not finite.
    #[error(
        "the experts' responses to the prompts are not all finite numbers: check the library with `lorakit library check`, or take a wider --dtype"
    )]
    NotFinite,
    /// A prompt pass was asked about rows other than those that it saw.
    #[error("the prompt pass was run on different rows")]
    OtherRows,
    /// Subtracting general knowledge by factors subtracts A's of different rank.
    #[error(
        "gks=factors subtracts the A's of `{module}`, whose ranks differ: `{}` has rank {}, `{}` has rank {}; use gks=deltas, which takes any ranks",
        .first.0, .first.1, .second.0, .second.1
    )]
    SubtractionRanks {
        /// The module's path.
        module: String,
        /// The expert and its rank.
        first: Named<usize>,
        /// A general expert whose rank is another.
        second: Named<usize>,
    },
    /// All experts of the library are general ones.
    #[error(
        "general={0} names all experts of the library: their knowledge is subtracted from the others, and no token is routed to them; leave one out"
    )]
    AllGeneral(String),
    /// A search was given no rows.
    #[error("no rows to fit the weights to")]
    NoRowsToSearch,
    /// A model answered a search about another number of candidates.
    #[error("{candidates} candidates got {answers} answers")]
    Answers {
        /// The number of candidates.
        candidates: usize,
        /// The number of answers.
        answers: usize,
    },
    /// No adapter was given to a merge.
    #[error("there is no expert to merge: name at least one")]
    NoExperts,
    /// The adapters that were given to a merge change nothing.
    #[error("none of the experts changes any module, so there is nothing to merge")]
    NoModules,
    /// Two experts of a merge have one name.
    #[error(
        "two experts have the name `{0}`: names must differ; to count one more than others, give it a higher weight"
    )]
    RepeatedExpert(String),
    /// Weights that do not belong to the experts one by one.
    #[error("expected {experts} weights{scope}, one per expert; found {weights}")]
    WeightCount {
        /// How many weights there are.
        weights: usize,
        /// How many experts there are.
        experts: usize,
        /// The words `for` and the module, if the weights are those of one module.
        scope: String,
    },
    /// A weight that is not a finite number.
    #[error("the weight of the expert `{expert}` is {weight}: a finite number is needed")]
    Weight {
        /// The expert's name.
        expert: String,
        /// What was given.
        weight: f64,
    },
    /// A weight for a module that no expert changes.
    #[error("there are weights for the module `{0}`, which none of the experts changes")]
    WeightOfNoModule(String),
    /// Two experts of a merge change one module, but not of one shape.
    #[error(
        "the experts differ in `{module}`: `{}` changes {:?} features (in, out), `{}` changes {:?}; were they trained on one base?",
        .first.0, .first.1, .second.0, .second.1
    )]
    Shapes {
        /// The module's path.
        module: String,
        /// An expert with its input and output.
        first: Named<(usize, usize)>,
        /// An expert that differs, with its input and output.
        second: Named<(usize, usize)>,
    },
    /// A merge of A and B separately takes equal ranks.
    #[error(
        "{method} merges A and B separately, and the ranks at `{module}` differ: `{}` has rank {}, `{}` has rank {}; use {instead}, which takes any ranks",
        .first.0, .first.1, .second.0, .second.1
    )]
    MergedRanks {
        /// The merge's name.
        method: &'static str,
        /// The module's path.
        module: String,
        /// An expert and its rank.
        first: Box<Named<usize>>,
        /// An expert whose rank is another.
        second: Box<Named<usize>>,
        /// A merge that takes any ranks.
        instead: &'static str,
    },
    /// A weight of a base that the adapter's module does not fit.
    #[error("`{module}` was given {found} values of the base's weight; its update is [{output}, {input}]")]
    BaseWeight {
        /// The module's path.
        module: String,
        /// How many values were given.
        found: usize,
        /// The update's output width.
        output: usize,
        /// The update's input width.
        input: usize,
    },
    /// A module for which the arithmetic gives no finite result.
    #[error("`{module}`: {problem}")]
    Arithmetic {
        /// The module's path.
        module: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A module whose merged matrices are refused.
    #[error("`{module}`: the merged matrices are invalid")]
    MergedMatrix {
        /// The module's path.
        module: String,
        /// What is wrong with them.
        source: Box<AdapterError>,
    },
    /// What the adapter algebra refuses.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// What a model answers a search with if it cannot say.
    #[error(transparent)]
    Model(Box<dyn Error + Send + Sync>),
    /// What candle refuses.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Names in a row, for messages.
pub(crate) fn listed<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The same of experts, of which there may be thousands: the first ones, and how many more there are.
pub(crate) fn first_listed<T: Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    const LISTED: usize = 20;
    let more = items.len().saturating_sub(LISTED);
    let shown = listed(items.take(LISTED));
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
