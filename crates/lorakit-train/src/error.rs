//! The errors of this crate.

use crate::run::device_memory::MemoryEstimate;
use crate::run::run_part::RunPart;
use candle_core::Shape;
use std::error::Error;
use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// The error of a caller's callback.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why training failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Where the source error occurred.
    #[error("{what}")]
    Context {
        /// A file or folder.
        what: String,
        /// What is wrong there.
        source: Box<TrainError>,
    },
    /// A file operation failed.
    #[error("{}: cannot be {action}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operation, as a participle: `read`, `written`, `created`, `removed`.
        action: &'static str,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// A settings file is invalid.
    #[error("{file}: invalid training settings: {reason}")]
    ConfigFile {
        /// The file.
        file: String,
        /// Where, and what was expected.
        reason: String,
    },
    /// `--set` without an equals sign.
    #[error("`{assignment}`: expected key=value")]
    Assignment {
        /// What was given.
        assignment: String,
    },
    /// An unknown setting.
    #[error("{}", describe_unknown_setting(name, suggested.as_deref(), known))]
    UnknownSetting {
        /// What was given.
        name: String,
        /// What is suggested instead.
        suggested: Option<String>,
        /// The names of all settings.
        known: String,
    },
    /// A setting's value has the wrong type.
    #[error("setting `{assignment}`: {reason}")]
    SettingValue {
        /// What was given.
        assignment: String,
        /// What was expected.
        reason: String,
    },
    /// A setting's value is out of range.
    #[error("setting `{name}` is {found}; expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// The valid values.
        expected: String,
    },

    /// `target_modules` matches nothing.
    #[error("setting target_modules = `{target_modules}` matches no module of the base; it has {}", modules.join(", "))]
    NoTargetModule {
        /// The setting.
        target_modules: String,
        /// The names of the base's modules.
        modules: Vec<String>,
    },
    /// A starting adapter has a module that is not trained.
    #[error(
        "the adapter to start from has a module `{module}` that target_modules = `{target_modules}` excludes; its effect \
         would be lost"
    )]
    InitModuleDropped {
        /// The module.
        module: String,
        /// The setting.
        target_modules: String,
    },
    /// A starting adapter lacks a module that is trained.
    #[error("the adapter to start from has no module `{module}`, which target_modules = `{target_modules}` includes")]
    InitLacksModule {
        /// The module.
        module: String,
        /// The setting.
        target_modules: String,
    },
    /// A starting adapter has another rank or scale than the config.
    #[error(
        "module `{module}` of the adapter to start from has rank {} and scale {}; the settings have rank {rank} and alpha \
         {alpha}, i.e. scale {scale}", found.0, found.1
    )]
    InitShape {
        /// The module.
        module: String,
        /// Its rank and scale.
        found: (usize, f64),
        /// The setting.
        rank: usize,
        /// The setting.
        alpha: f64,
        /// alpha / rank.
        scale: f64,
    },
    /// A starting adapter has several A's where the config ties them.
    #[error("module `{module}`: tie_qkv is set, but its A differs from that of `{first}`")]
    UntiedInit {
        /// The module.
        module: String,
        /// The site's first module.
        first: String,
    },
    /// A run has another number of parts.
    #[error(
        "{}: the first part divided this run into {recorded} parts; found --part {part}, expected --part I/{recorded}",
        path.display()
    )]
    OtherParts {
        /// The run's run.json.
        path: PathBuf,
        /// The number of parts that it records.
        recorded: usize,
        /// What was asked for.
        part: RunPart,
    },
    /// No adapter is given.
    #[error("there are no adapters")]
    NoAdapters,
    /// An adapter without modules.
    #[error("the first adapter has no modules")]
    NoModules,
    /// Adapters of different ranks or scales.
    #[error(
        "module `{module}` has rank {} and scale {}, others have rank {} and scale {}; all must agree: \
         `lorakit merge --method svd:rank=N` converts an adapter to a rank", found.0, found.1, expected.0, expected.1
    )]
    MixedShapes {
        /// The module.
        module: String,
        /// Its rank and scale.
        found: (usize, f64),
        /// The rank and scale of the first module.
        expected: (usize, f64),
    },

    /// Nothing to route.
    #[error("routing needs at least one skill, one split and one task")]
    EmptyRouting,
    /// A width that MHR cannot split.
    #[error("site `{site}`: a width of {width} cannot be split in {splits}; expected splits that divide it")]
    Splits {
        /// The site.
        site: String,
        /// The width.
        width: usize,
        /// The setting.
        splits: usize,
    },
    /// More splits than any tensor has columns.
    #[error("{splits} splits of {skills} skills are too many")]
    TooManySplits {
        /// The number of splits.
        splits: usize,
        /// The number of skills.
        skills: usize,
    },
    /// Logits are missing.
    #[error("no routing for site `{site}`")]
    NoLogits {
        /// The site.
        site: String,
    },
    /// Logits of a wrong shape.
    #[error("the routing of site `{site}` is {found:?}; expected {expected:?}")]
    LogitsShape {
        /// The site.
        site: String,
        /// The shape.
        found: (usize, usize),
        /// `[tasks, splits * skills]`.
        expected: (usize, usize),
    },
    /// A job's rows and their tasks differ in number.
    #[error("{tasks} tasks given for {rows} {what} rows")]
    RowTasks {
        /// `training` or `validation`.
        what: &'static str,
        /// Task indices given.
        tasks: usize,
        /// Rows.
        rows: usize,
    },
    /// A stored routing whose skills have changed.
    #[error(
        "{place}: not the routing of the library's skills: {change}; train skills and routing again: \
         `train-experts --{name}` with --restart"
    )]
    ChangedSkills {
        /// The routing's folder.
        place: String,
        /// What has changed.
        change: String,
        /// The routing's name.
        name: String,
    },
    /// An expert of another training has the name of a skill.
    #[error("expert `{skill}` is in the library and is not a skill of this {routing}; --restart would replace it")]
    SkillNameTaken {
        /// The expert.
        skill: String,
        /// The routing.
        routing: String,
    },

    /// A base to train adapters over was opened to be trained itself.
    #[error("the base was opened to be trained; adapters are trained over a frozen one")]
    TrainableBase,
    /// A base to train was opened frozen.
    #[error("the base was not opened to be trained")]
    FrozenBase,
    /// A pass without adapters was asked for one.
    #[error("the pass does not train adapters")]
    NotAdapters,
    /// A pass without skills was asked for them.
    #[error("the pass does not train skills")]
    NotSkills,
    /// A failed expert was asked for its adapter.
    #[error("expert `{expert}` failed: {reason}")]
    Failed {
        /// The expert.
        expert: String,
        /// Why it was stopped.
        reason: String,
    },
    /// An expert's saved values are incomplete.
    #[error("the saved values of expert {index} are incomplete")]
    MissingValues {
        /// The expert's index, from 0.
        index: usize,
    },

    /// A variable without dimensions.
    #[error("variable `{name}` is a scalar; give it one dimension of length 1")]
    ScalarVariable {
        /// The variable.
        name: String,
    },
    /// Rows of a parameter that it does not have.
    #[error("a segment of parameter `{name}` exceeds its {rows} rows")]
    Segments {
        /// The parameter.
        name: String,
        /// Its rows.
        rows: usize,
    },
    /// Saved moments of a wrong shape.
    #[error("the moments of `{name}` have shape {found:?}; expected {expected:?}")]
    MomentsShape {
        /// The parameter.
        name: String,
        /// The shape.
        found: Shape,
        /// The parameter's.
        expected: Shape,
    },
    /// A variable without a gradient.
    #[error("no gradient reached `{name}`")]
    NoGradient {
        /// The variable.
        name: String,
    },
    /// A loss is not finite.
    #[error("at step {step} the loss was {loss}; try a lower learning_rate")]
    NonFiniteLoss {
        /// The step, from one.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// A gradient is not finite.
    #[error("at step {step} the gradient norms were {norms:?}; try a lower learning_rate")]
    NonFiniteNorm {
        /// The step, from one.
        step: usize,
        /// The norm of each group.
        norms: Vec<f64>,
    },

    /// No jobs.
    #[error("there is no expert to train")]
    NoJobs,
    /// A job without rows.
    #[error("{noun} `{name}`: its tasks have no rows to train on")]
    NoRows {
        /// The kind of result.
        noun: &'static str,
        /// Its name.
        name: String,
    },
    /// No examples to fit to.
    #[error("there are no rows to fit the routing to")]
    NoExamples,
    /// The library has a result of that name with other settings.
    #[error("{noun} `{name}` is in the library, {difference}; --restart would train it again")]
    OtherSettings {
        /// The kind of result.
        noun: &'static str,
        /// Its name.
        name: String,
        /// How the settings differ.
        difference: String,
    },
    /// Not enough memory.
    #[error("{}", describe_memory(estimate, *available))]
    Memory {
        /// Memory that training needs.
        estimate: MemoryEstimate,
        /// Bytes available.
        available: u64,
    },
    /// A damaged run.json.
    #[error("{}: not a run of lorakit; remove its folder to start the run again", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A run.json that names an expert of another run.
    #[error("{}: run.json names `{name}`, which is not one of its experts", folder.display())]
    UnknownExpert {
        /// The run's folder.
        folder: PathBuf,
        /// The expert.
        name: String,
    },
    /// A damaged checkpoint.
    #[error("{}: not a complete checkpoint; remove it to start the pass again", path.display())]
    CheckpointFile {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: Box<lorakit_format::FormatError>,
    },
    /// A safetensors file that is no checkpoint.
    #[error("{}: not a checkpoint of lorakit", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint with damaged metadata.
    #[error("{}: the checkpoint's metadata cannot be parsed", path.display())]
    CheckpointState {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A checkpoint of another pass.
    #[error("{}: the checkpoint has {found} experts; expected {expected}", path.display())]
    CheckpointExperts {
        /// The file.
        path: PathBuf,
        /// Its experts.
        found: usize,
        /// The pass's experts.
        expected: usize,
    },
    /// A checkpoint without a tensor.
    #[error("{}: tensor `{name}` is missing", path.display())]
    CheckpointTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A checkpoint whose tensors do not match the pass.
    #[error("{}: the checkpoint does not match the pass; remove it to start the pass again", path.display())]
    CheckpointMismatch {
        /// The file.
        path: PathBuf,
        /// What does not match.
        source: Box<TrainError>,
    },

    /// The error of a callback.
    #[error(transparent)]
    Callback(#[from] BoxError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A base cannot be opened or saved.
    #[error(transparent)]
    Model(#[from] lorakit_model::ModelError),
    /// An adapter or the library cannot be read or written.
    #[error(transparent)]
    Adapter(#[from] lorakit_adapter::AdapterError),
    /// A file of lorakit could not be written or read.
    #[error(transparent)]
    Format(#[from] lorakit_format::FormatError),
    /// A value is not representable as JSON, or JSON as a value.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Tensors could not be serialized.
    #[error(transparent)]
    Safetensors(#[from] safetensors::SafeTensorError),
}

fn describe_unknown_setting(name: &str, suggested: Option<&str>, known: &str) -> String {
    if name == "seed" {
        return "unknown setting `seed`; use the global option --seed".to_owned();
    }
    match suggested {
        Some(suggested) => format!("unknown setting `{name}`; did you mean `{suggested}`? Settings: {known}"),
        None => format!("unknown setting `{name}`; expected one of {known}"),
    }
}

fn describe_memory(estimate: &MemoryEstimate, available: u64) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let advice = match estimate.weights {
        0 => "a shorter max_length, or fewer experts_per_pass",
        _ => "a shorter max_length, or adapters instead of all weights",
    };
    format!(
        "training needs about {:.1} GiB (base {:.1}, adapters {:.1}, all weights {:.1}, activations {:.1}), and {:.1} GiB \
         are available; try --set gradient_checkpointing=true, {advice}",
        gib(estimate.total()),
        gib(estimate.base),
        gib(estimate.adapters),
        gib(estimate.weights),
        gib(estimate.activations),
        gib(available)
    )
}
