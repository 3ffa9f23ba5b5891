//! The errors of this crate.

use lorakit_adapter::AdapterError;
use lorakit_eval::EvalError;
use lorakit_format::{FormatError, did_you_mean};
use lorakit_model::ModelError;
use lorakit_route::RouteError;
use lorakit_train::{BoxError, TrainError};
use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T, E = FitError> = std::result::Result<T, E>;

/// Why something could not be fitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// What was being done, with the cause.
    #[error("{what}")]
    Context {
        /// The file, task, expert or method.
        what: String,
        /// What went wrong.
        source: Box<FitError>,
    },
    /// A JSON file of another form.
    #[error("{}: not as lorakit writes it", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A library without experts.
    #[error("{}: the library has no experts; `lorakit train-experts` and `lorakit library add` make some", .0.display())]
    EmptyLibrary(PathBuf),
    /// A change of full rank that is none of a module of the base.
    #[error("module `{module}` cannot be converted: {reason}")]
    NotConvertible {
        /// The module's path.
        module: String,
        /// Why.
        reason: String,
    },
    /// An expert or model of another base.
    #[error(
        "trained on a base with the fingerprint {trained}, and `{base}` has {fingerprint}; give the base that it was trained on"
    )]
    OtherBase {
        /// The fingerprint that is recorded.
        trained: String,
        /// The name of the base that was given.
        base: String,
        /// Its fingerprint.
        fingerprint: String,
    },
    /// A cluster with a task that was not given.
    #[error(
        "{place}: cluster `{cluster}` has the task `{task}`, which --tasks does not give; add it, or name a task so with `{task}=FILE`"
    )]
    ClusterTask {
        /// Where the clusters are from.
        place: String,
        /// The cluster's name.
        cluster: String,
        /// The task's name.
        task: String,
    },
    /// Rows that several experts share and that cannot be read; the message of the first.
    #[error("{0}")]
    SharedRows(String),
    /// An expert without training rows.
    #[error("expert `{0}` has no rows to train on; give fewer experts")]
    NoTrainingRows(String),
    /// A run without experts.
    #[error("no expert to train")]
    NothingToTrain,
    /// Several plans for what is trained from one.
    #[error("expected one training plan, found {0}")]
    SeveralPlans(usize),
    /// Weights without rows to fit them to.
    #[error("no rows to fit the weights to")]
    NoRows,
    /// A router or merge that nothing here fits.
    #[error("{0} is not fitted to rows")]
    NoFit(String),
    /// No gradient for weights that are fitted.
    #[error("no gradient reached the weights")]
    NoGradient,
    /// A loss that is NaN or infinite.
    #[error("the loss of held-out rows is not finite after step {0}")]
    NonFiniteLoss(usize),
    /// Logits that a conversion is judged by and that are NaN or infinite.
    #[error(
        "over random tokens the logits of the base, of the adapter or of its conversion are NaN or infinite; check the base's weights and the adapter's scale"
    )]
    NonFiniteLogits,
    /// An expert that the rows to fit to leave out.
    #[error("--fit gives no task of the expert `{0}`, and rows of every expert are needed")]
    ExpertWithoutTask(String),
    /// An expert whose record names no task.
    #[error("no tasks are recorded for the expert `{0}`: give rows of every expert's tasks with --fit")]
    NoRecordedTasks(String),
    /// A router of one task where there is none.
    #[error("there is no task to fit to: give rows with --fit")]
    NoCurrentTask,
    /// A recorded task whose rows or split have changed.
    #[error(transparent)]
    ChangedTask(Box<ChangedTask>),
    /// Tasks whose validation rows, if any, are training rows of experts.
    #[error(
        "no task to fit to has validation rows that no expert was trained on: give tasks that have some with --fit"
    )]
    NoValidationRows,
    /// A library whose only expert is to be compared with others.
    #[error("the library has one expert, and the response ratio compares a task's own expert with others")]
    NoOtherExpert,
    /// A response that is NaN or infinite.
    #[error("row {row}: an expert's response is NaN or infinite; check the weights of the experts and the base")]
    NonFiniteResponse {
        /// The row's number in its file.
        row: usize,
    },
    /// A row that should belong to an expert.
    #[error("a row has no expert")]
    RowWithoutExpert,
    /// A library that another process keeps locked.
    #[error("another process is changing the library")]
    LibraryInUse,
    /// Skills without their routing.
    #[error(
        "{}: skills of poly are in the library, without their routing: their training did not end; run `lorakit train-experts --poly K` again as before, or remove the skills to choose from the other experts",
        .0.display()
    )]
    UnfinishedSkills(PathBuf),
    /// A library without MHR skills.
    #[error("{}: the library has no MHR routing; `lorakit train-experts --mhr K` trains one", .0.display())]
    NoMhr(PathBuf),
    /// A cached tensor of another type.
    #[error("`{name}` is {found}; expected F32")]
    StateType {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// A cached tensor that is no matrix.
    #[error("`{name}` has the shape {found:?}; expected two dimensions")]
    StateShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A module that no expert has.
    #[error("no expert has the module `{0}`")]
    UnknownModule(String),
    /// More clusters than experts.
    #[error("{option} {count}: expected at most {experts}, the number of experts")]
    TooManyClusters {
        /// What the user calls the number of clusters.
        option: String,
        /// The number.
        count: usize,
        /// The number of experts.
        experts: usize,
    },
    /// Experts for which no number of clusters can be chosen.
    #[error("{0} auto: too few experts that differ to choose a number of clusters; give {0} a number")]
    NoClusterCount(String),
    /// Clusters of another run.
    #[error(
        "{}: holds the clusters of another run, with another K or other settings; --restart replaces them, or give another --library",
        .0.display()
    )]
    OtherClusters(PathBuf),
    /// Too few tasks for the number of clusters.
    #[error("{0}")]
    TooFewTasks(String),
    /// More parts than rows.
    #[error("--random-examples {parts}: expected at most {rows}, the number of training rows")]
    TooManyParts {
        /// The number of parts.
        parts: usize,
        /// The number of rows.
        rows: usize,
    },
    /// Too few steps for two stages.
    #[error("--mbc: setting `{name}` is {found}; expected at least 2, since both stages need some")]
    TooFewSteps {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: f64,
    },
    /// An adaptation method of an unknown name.
    #[error("unknown method `{name}`{}; expected one of {known}", did_you_mean(.name, .known))]
    UnknownMethod {
        /// The name.
        name: String,
        /// The methods that there are.
        known: String,
    },
    /// Settings of an adaptation method that has none.
    #[error("`{name}` has no settings; found `{found}`")]
    NoSettings {
        /// The method.
        name: &'static str,
        /// What was typed.
        found: String,
    },
    /// A colon after an adaptation method without the name that should follow.
    #[error("`{0}:` has no name after the colon; expected `{0}` or `{0}:NAME`")]
    NoName(&'static str),
    /// An adaptation method without its library.
    #[error("the method needs --library")]
    NeedsLibrary,
    /// Settings that do not suit the adapter that training starts from.
    #[error(
        "the adapter to start from has rank {} and alpha {}, and the settings have rank {} and alpha {}; leave both out to take the adapter's",
        adapter.0, adapter.1, settings.0, settings.1
    )]
    InitShape {
        /// The adapter's rank and alpha.
        adapter: (usize, f64),
        /// Those of the settings.
        settings: (usize, f64),
    },
    /// Experts that add nothing.
    #[error("the experts have the scale 0, from which nothing can be trained")]
    ZeroScale,
    /// An adapter of the task's name that was fitted otherwise.
    #[error(
        "{}: `{name}` exists, and was fitted by another method, library or rows; --restart fits it again",
        library.display()
    )]
    OtherAdapter {
        /// The library's folder.
        library: PathBuf,
        /// The adapter's name.
        name: String,
    },
    /// A function of the caller failed.
    #[error(transparent)]
    Caller(#[from] BoxError),
    /// From lorakit-adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// From lorakit-cluster.
    #[error(transparent)]
    Cluster(#[from] lorakit_cluster::ClusterError),
    /// From lorakit-eval.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// From lorakit-format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// From lorakit-model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// From lorakit-route.
    #[error(transparent)]
    Route(Box<RouteError>),
    /// From lorakit-task.
    #[error(transparent)]
    Task(#[from] lorakit_task::TaskError),
    /// From lorakit-train.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A safetensors file.
    #[error(transparent)]
    Safetensors(#[from] safetensors::SafeTensorError),
}

/// A recorded task whose rows or split have changed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: the task `{task}`{whose} is not what was trained on: recorded sha256 {sha256}, split_seed {split_seed}; found {found}; {advice}"
)]
pub struct ChangedTask {
    /// The recorded file.
    pub path: String,
    /// The task's name.
    pub task: String,
    /// ` of the expert NAME`, where it is of one.
    pub whose: String,
    /// The recorded hash.
    pub sha256: String,
    /// The recorded seed.
    pub split_seed: u64,
    /// What is there now.
    pub found: String,
    /// What to do.
    pub advice: &'static str,
}

impl From<RouteError> for FitError {
    fn from(error: RouteError) -> Self {
        Self::Route(Box::new(error))
    }
}

impl FitError {
    /// The messages of the error and its sources, separated by colons.
    pub fn chain(&self) -> String {
        lorakit_format::error_chain(self)
    }
}

/// Says what was being done when an error occurred.
pub(crate) trait WithContext<T> {
    /// The result, with `what` before the error.
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<FitError>> WithContext<T> for Result<T, E> {
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| FitError::Context { what: what(), source: Box::new(error.into()) })
    }
}
