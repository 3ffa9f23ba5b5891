//! adapter_config.json, PEFT's configuration of an adapter (keys as of PEFT 0.21).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lorakit_format::non_finite_json::replace_non_finite;
use lorakit_format::read_text_up_to;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{AdapterError, Result, Within};
use crate::peft::path_pattern::PathPattern;
use crate::peft::target_modules::{ModuleSelector, Targets};
use crate::peft::unsupported::UnsupportedConfig;
use crate::peft::validate::Validator;
use crate::warning::Warning;

/// PEFT's default of `r` and `lora_alpha`.
const PEFT_DEFAULT: usize = 8;

/// The largest adapter_config.json that is read, in bytes; one that names every module of a large base has 1e5.
const SIZE_LIMIT: u64 = 1 << 24;

/// Initializations that change the base's own weights, so that A and B are not an update of the published base.
const CHANGES_THE_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Initializations that leave the base as it is.
const LEAVES_THE_BASE: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// A valid adapter_config.json of a plain LoRA.
#[derive(Clone, Debug)]
pub struct PeftConfig {
    /// The rank of modules that no pattern matches (`r`).
    pub rank: usize,
    /// The alpha of modules that no pattern matches (`lora_alpha`).
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(r)` instead of `alpha / r` (`use_rslora`).
    pub rslora: bool,
    /// Which modules are adapted (`target_modules`, `exclude_modules`, `layers_to_transform`,
    /// `layers_pattern`).
    pub targets: Targets,
    /// Whether the adapter of a tied embedding is the head's too, whose tensors the file then holds as well
    /// (`ensure_weight_tying`).
    pub weight_tying: bool,
    /// What it sets beyond a plain LoRA; nothing, but for an adapter that is to be converted.
    pub(crate) beyond_lora: BeyondLora,
    /// What else is needed to write the adapter again.
    pub metadata: AdapterMetadata,
    /// What was accepted with a warning.
    pub warnings: Vec<Warning>,
    rank_pattern: Vec<(PathPattern, usize)>,
    alpha_pattern: Vec<(PathPattern, f64)>,
}

/// What an adapter_config.json says besides the modules: kept, and written again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterMetadata {
    /// The base that the adapter was made for, for information only (`base_model_name_or_path`).
    pub base_model: Option<String>,
    /// The revision of that base.
    pub revision: Option<String>,
    /// The task for which PEFT wraps the base (`task_type`).
    pub task_type: TaskType,
    /// The dropout of training (`lora_dropout`).
    pub dropout: f64,
    /// Whether its config names the scale as rsLoRA does, `alpha / sqrt(r)`.
    pub rslora: bool,
    /// The paths of modules that are embeddings, whose matrices have names and a use of their own in PEFT.
    pub embeddings: BTreeSet<String>,
    /// Whether the base stores these weights as `[in, out]`, as GPT-2 does. `s B A` is `[out, in]` nevertheless.
    pub fan_in_fan_out: bool,
}

/// Keys that make an adapter more than a plain LoRA, and that a conversion understands.
#[derive(Clone, Debug, Default)]
pub(crate) struct BeyondLora {
    /// Whether each module has a magnitude (`use_dora`).
    pub(crate) dora: bool,
    /// The ends of the paths of modules of which the file holds whole copies (`modules_to_save`).
    pub(crate) saved_modules: Vec<String>,
    /// The tokens with rows of their own, by the end of the embedding's path; by an empty one for any embedding
    /// (`trainable_token_indices`).
    pub(crate) token_indices: BTreeMap<String, Vec<usize>>,
}

/// PEFT's task types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskType {
    /// Sequence classification.
    SeqCls,
    /// Sequence to sequence.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// Causal language modeling.
    #[default]
    CausalLm,
    /// Token classification.
    TokenCls,
    /// Question answering.
    QuestionAns,
    /// Feature extraction.
    FeatureExtraction,
}

impl PeftConfig {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read or describes anything but a plain LoRA; the error names the file, and each unsupported
    /// key with the reason.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text_up_to(path, SIZE_LIMIT)?;
        Self::parse(&text).within_file(path)
    }

    /// Reads the file at `path`, in which DoRA, whole copies of modules and rows of tokens are allowed besides a LoRA.
    ///
    /// # Errors
    /// As [`read`](Self::read), for anything else.
    pub(crate) fn read_dense(path: &Path) -> Result<Self> {
        let text = read_text_up_to(path, SIZE_LIMIT)?;
        let take = |validator: &mut Validator| BeyondLora {
            dora: validator.take_as("use_dora", "true or false", Value::as_bool).unwrap_or(false),
            saved_modules: validator.take_as("modules_to_save", "a list of names", strings).unwrap_or_default(),
            token_indices: validator
                .take_as("trainable_token_indices", "token ids, or these by embedding", token_indices)
                .unwrap_or_default(),
        };
        Self::parse_after(&text, take).within_file(path)
    }

    /// Parses the text of an adapter_config.json and accounts for every key.
    ///
    /// # Errors
    /// If the text is not a JSON object, or describes anything but a plain LoRA (rsLoRA and patterns included); the error
    /// lists every unsupported key with the reason and what to do.
    pub fn parse(json: &str) -> Result<Self> {
        Self::parse_after(json, |_| BeyondLora::default())
    }

    /// The same after `take` has taken the keys that a plain LoRA does not have.
    fn parse_after(json: &str, take: impl FnOnce(&mut Validator) -> BeyondLora) -> Result<Self> {
        // A text, so that a key that needs a number is refused with what Python wrote.
        let json = replace_non_finite(json.as_bytes(), |word| format!("\"{word}\""));
        let mut validator = Validator::new(serde_json::from_slice(&json).map_err(AdapterError::ConfigJson)?);
        check_peft_type(&mut validator)?;
        let beyond_lora = take(&mut validator);
        let rank = read_rank(&mut validator);
        let alpha = read_alpha(&mut validator);
        let rslora = validator.take_as("use_rslora", "true or false", Value::as_bool).unwrap_or(false);
        let weight_tying = validator.take_as("ensure_weight_tying", "true or false", Value::as_bool).unwrap_or(false);
        let targets = read_targets(&mut validator);
        let rank_pattern = read_patterns(&mut validator, "rank_pattern", "a rank of at least 1", positive);
        let alpha_pattern = read_patterns(&mut validator, "alpha_pattern", "a finite number", finite);
        let metadata = AdapterMetadata { rslora, ..read_metadata(&mut validator) };
        check_biases(&mut validator);
        check_initialization(&mut validator);
        validator.validate_rest();
        let warnings = validator.finish()?;
        Ok(Self {
            rank,
            alpha,
            rslora,
            targets,
            weight_tying,
            beyond_lora,
            metadata,
            warnings,
            rank_pattern,
            alpha_pattern,
        })
    }

    /// The rank of the module at `path`: the first key of `rank_pattern` that matches it, else `r`.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn rank_of(&self, path: &str) -> Result<usize> {
        self.rank_under(&[path])
    }

    /// The scale of the module at `path`: `alpha / r`, or `alpha / sqrt(r)` under rsLoRA, after the
    /// patterns.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn scale_of(&self, path: &str) -> Result<f64> {
        self.scale_under(&[path])
    }

    /// As [`rank_of`](Self::rank_of), of a module that has several paths: the first that a key matches counts.
    pub(crate) fn rank_under(&self, paths: &[&str]) -> Result<usize> {
        Ok(first_match(&self.rank_pattern, paths).within(|| "rank_pattern".to_owned())?.unwrap_or(self.rank))
    }

    /// As [`scale_of`](Self::scale_of), of a module that has several paths: the first that a key matches counts.
    pub(crate) fn scale_under(&self, paths: &[&str]) -> Result<f64> {
        let alpha =
            first_match(&self.alpha_pattern, paths).within(|| "alpha_pattern".to_owned())?.unwrap_or(self.alpha);
        let rank = self.rank_under(paths)? as f64;
        Ok(alpha / if self.rslora { rank.sqrt() } else { rank })
    }

    /// The keys of `rank_pattern` and `alpha_pattern` that match none of `paths`, each with the key that it is in.
    pub(crate) fn unmatched_patterns(&self, paths: &[&str]) -> Result<Vec<(&'static str, &str)>> {
        let ranks = self.rank_pattern.iter().map(|(pattern, _)| ("rank_pattern", pattern));
        let alphas = self.alpha_pattern.iter().map(|(pattern, _)| ("alpha_pattern", pattern));
        let mut unmatched = Vec::new();
        for (key, pattern) in ranks.chain(alphas) {
            let mut matched = false;
            for path in paths {
                matched = matched || pattern.matches(path).within(|| key.to_owned())?;
            }
            if !matched {
                unmatched.push((key, pattern.source()));
            }
        }
        Ok(unmatched)
    }
}

fn first_match<T: Copy>(patterns: &[(PathPattern, T)], paths: &[&str]) -> Result<Option<T>> {
    for path in paths {
        for (pattern, value) in patterns {
            if pattern.matches(path)? {
                return Ok(Some(*value));
            }
        }
    }
    Ok(None)
}

/// Checks that `peft_type` is LORA. Otherwise the other keys mean something else and are not read.
fn check_peft_type(validator: &mut Validator) -> Result<(), UnsupportedConfig> {
    let reason = match validator.take("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => return Ok(()),
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("lora") => {
            format!("found \"{kind}\"; expected \"LORA\", the only spelling that PEFT loads")
        }
        Some(kind) => {
            format!("found {kind}; expected \"LORA\": only low-rank updates s B A are supported")
        }
        None => "missing; expected \"LORA\"".to_owned(),
    };
    Err(UnsupportedConfig::of("peft_type", reason))
}

fn read_rank(validator: &mut Validator) -> usize {
    let rank = validator.take("r");
    if rank.is_none() {
        validator.warn("r", format!("missing: PEFT's default {PEFT_DEFAULT} is taken"));
    }
    rank.map_or(PEFT_DEFAULT, |value| {
        positive(&value).unwrap_or_else(|| {
            validator.refuse("r", format!("found {value}; expected a whole number of at least 1"));
            PEFT_DEFAULT
        })
    })
}

fn read_alpha(validator: &mut Validator) -> f64 {
    let alpha = validator.take("lora_alpha");
    if alpha.is_none() {
        validator.warn("lora_alpha", format!("missing: PEFT's default {PEFT_DEFAULT} is taken"));
    }
    alpha.map_or(PEFT_DEFAULT as f64, |value| {
        finite(&value).unwrap_or_else(|| {
            validator.refuse("lora_alpha", format!("found {value}; expected a finite number"));
            PEFT_DEFAULT as f64
        })
    })
}

fn read_targets(validator: &mut Validator) -> Targets {
    let mut targets = read_target_modules(validator);
    if let Some(excluded) = read_excluded(validator) {
        targets = targets.excluding(excluded);
    }
    let lists = validator.take_as("layers_pattern", "a string or a list of strings", strings).unwrap_or_default();
    let lists = if lists == [""] { Vec::new() } else { lists };
    let indexes = validator.take_as("layers_to_transform", "a layer's number or a list of them", layer_indexes);
    match indexes.filter(|indexes| !indexes.is_empty()) {
        Some(indexes) => {
            let narrowed = targets.clone().in_layers(indexes, &lists);
            validator.accept("layers_to_transform", narrowed).unwrap_or(targets)
        }
        None => {
            if !lists.is_empty() {
                validator.warn("layers_pattern", "without effect: layers_to_transform chooses no layers");
            }
            targets
        }
    }
}

fn read_target_modules(validator: &mut Validator) -> Targets {
    const KEY: &str = "target_modules";
    match validator.take(KEY) {
        None => {
            validator.warn(KEY, "null: PEFT would pick modules by the base's architecture; here the tensors decide");
            Targets::unspecified()
        }
        Some(Value::String(text)) => validator.accept(KEY, Targets::string(&text)).unwrap_or_else(Targets::unspecified),
        Some(value) => match strings(&value) {
            Some(names) if !names.is_empty() => Targets::list(names),
            // Such an adapter is refused for what it does adapt.
            Some(_) if validator.is_set("target_parameters") => Targets::unspecified(),
            _ => {
                validator.refuse(KEY, format!("found {value}; expected names, an expression, or \"all-linear\""));
                Targets::unspecified()
            }
        },
    }
}

fn read_excluded(validator: &mut Validator) -> Option<ModuleSelector> {
    const KEY: &str = "exclude_modules";
    match validator.take(KEY)? {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => validator.accept(KEY, PathPattern::whole(&text)).map(ModuleSelector::Matching),
        value => match strings(&value) {
            Some(names) => Some(ModuleSelector::List(names.into_iter().collect())),
            None => {
                validator.refuse(KEY, format!("found {value}; expected a list of names or an expression"));
                None
            }
        },
    }
}

/// The entries of a pattern key in the order of the file, of which the first match wins.
fn read_patterns<T>(
    validator: &mut Validator,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Vec<(PathPattern, T)> {
    let Some(pairs) = validator.take_as(key, "an object", |value| value.as_object().cloned()) else {
        return Vec::new();
    };
    let mut patterns = Vec::with_capacity(pairs.len());
    for (source, value) in pairs {
        let pattern = validator.accept(key, PathPattern::suffix(&source));
        match (pattern, read(&value)) {
            (Some(pattern), Some(value)) => patterns.push((pattern, value)),
            (_, None) => validator.refuse(key, format!("found {value} for `{source}`; expected {expected}")),
            (None, _) => {}
        }
    }
    patterns
}

fn read_metadata(validator: &mut Validator) -> AdapterMetadata {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let expected = "CAUSAL_LM, SEQ_CLS, SEQ_2_SEQ_LM, TOKEN_CLS, QUESTION_ANS or FEATURE_EXTRACTION";
    let task = validator.take_as("task_type", expected, |value| serde_json::from_value(value.clone()).ok());
    let task_type = task.unwrap_or_default();
    if !matches!(task_type, TaskType::CausalLm | TaskType::Seq2SeqLm) {
        let name = serde_json::json!(task_type);
        let name = name.as_str().unwrap_or_default();
        validator.warn("task_type", format!("{name}: only the language model's own layers are adapted here"));
    }
    AdapterMetadata {
        base_model: validator.take_as("base_model_name_or_path", "a string", text),
        revision: validator.take_as("revision", "a string", text),
        task_type,
        dropout: validator.take_as("lora_dropout", "a finite number", finite).unwrap_or(0.0),
        rslora: false,
        embeddings: BTreeSet::new(),
        fan_in_fan_out: validator.take_as("fan_in_fan_out", "true or false", Value::as_bool).unwrap_or(false),
    }
}

/// `bias` and `lora_bias`: what they trained is judged by the tensors, of which there may be none.
fn check_biases(validator: &mut Validator) {
    let bias = validator.take_as("bias", "none, all or lora_only", |value| value.as_str().map(str::to_owned));
    match bias.as_deref() {
        None | Some("none") => {}
        Some(bias @ ("all" | "lora_only")) => validator.warn(
            "bias",
            format!(
                "found \"{bias}\": accepted where the file holds no bias, only zeros, or with --base B the base's own"
            ),
        ),
        Some(other) => validator.refuse("bias", format!("found \"{other}\"; expected none, all or lora_only")),
    }
    if validator.take_as("lora_bias", "true or false", Value::as_bool) == Some(true) {
        validator.warn("lora_bias", "found true: accepted where the file holds no bias of lora_B, or only zeros");
    }
}

/// `init_lora_weights`: where training changed the base first, A and B do not fit the published one.
fn check_initialization(validator: &mut Validator) {
    const KEY: &str = "init_lora_weights";
    let Some(start) = validator.take(KEY) else { return };
    let known = match &start {
        Value::Bool(_) => true,
        Value::String(name) => {
            let name = name.split_once("_niter_").map_or(name.as_str(), |(name, _)| name);
            if CHANGES_THE_BASE.contains(&name) {
                let advice = "save it with PEFT's path_initial_model_for_weight_conversion, \
                    which makes it a plain LoRA";
                return validator
                    .refuse(KEY, format!("found {start}, which also changes the base's weights; {advice}"));
            }
            LEAVES_THE_BASE.contains(&name)
        }
        _ => false,
    };
    if !known {
        validator.refuse(KEY, format!("found {start}; expected true, false or one of {LEAVES_THE_BASE:?}"));
    }
}

fn positive(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0)
}

fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

/// A string, or a list of strings.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A list of tokens, or one for each name of a module; none of it is empty.
fn token_indices(value: &Value) -> Option<BTreeMap<String, Vec<usize>>> {
    let tokens = |value: &Value| -> Option<Vec<usize>> {
        value.as_array()?.iter().map(|token| usize::try_from(token.as_u64()?).ok()).collect()
    };
    let named: BTreeMap<String, Vec<usize>> = match value {
        Value::Object(modules) => {
            modules.iter().map(|(name, value)| Some((name.clone(), tokens(value)?))).collect::<Option<_>>()?
        }
        _ => [(String::new(), tokens(value)?)].into(),
    };
    Some(named.into_iter().filter(|(_, tokens)| !tokens.is_empty()).collect())
}

/// A number, or a list of numbers.
fn layer_indexes(value: &Value) -> Option<BTreeSet<i64>> {
    match value {
        Value::Array(items) => items.iter().map(Value::as_i64).collect(),
        _ => value.as_i64().map(|index| [index].into()),
    }
}
