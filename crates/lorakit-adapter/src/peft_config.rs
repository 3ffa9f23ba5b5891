//! adapter_config.json, the description of an adapter that PEFT writes (keys as of PEFT 0.21).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::judge::{Judge, Refused};
use crate::notice::Notice;
use crate::pattern::Pattern;
use crate::target::{Names, Targets};

/// The value that PEFT gives `r` and `lora_alpha` where a file has none.
const PEFT_DEFAULT: usize = 8;

/// The longest adapter_config.json that is read, in bytes; one that names every module of a large
/// base has 1e5.
const LENGTH_LIMIT: u64 = 1 << 24;

/// Initialisations that change the base's own weights, so that A and B are no update of the base as
/// published.
const CHANGES_THE_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Initialisations that leave the base as it is.
const LEAVES_THE_BASE: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// What an accepted adapter_config.json says.
#[derive(Clone, Debug)]
pub struct PeftConfig {
    /// The rank of modules that no pattern names (`r`).
    pub rank: usize,
    /// The alpha of modules that no pattern names (`lora_alpha`).
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(r)` instead of `alpha / r` (`use_rslora`).
    pub rslora: bool,
    /// Which modules are adapted (`target_modules`, `exclude_modules`, `layers_to_transform`,
    /// `layers_pattern`).
    pub targets: Targets,
    /// What else has to be kept to write the adapter again.
    pub facts: Facts,
    /// What was accepted leniently.
    pub notices: Vec<Notice>,
    rank_pattern: Vec<(Pattern, usize)>,
    alpha_pattern: Vec<(Pattern, f64)>,
}

/// What an adapter_config.json says beside the modules: kept, and written again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The base that the adapter was made for; advice only (`base_model_name_or_path`).
    pub base_model: Option<String>,
    /// The revision of that base.
    pub revision: Option<String>,
    /// The kind of model that PEFT wraps the base in.
    pub task_type: TaskType,
    /// The dropout of training (`lora_dropout`).
    pub dropout: f64,
    /// Whether the base keeps these weights as `[in, out]`, as GPT-2 does. `s B A` is `[out, in]`
    /// all the same.
    pub fan_in_fan_out: bool,
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
    /// Causal language modelling.
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
    /// Reads and judges the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read or is refused; the error names it, and each refused key with its
    /// reason.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let mut text = String::new();
            File::open(path)?.take(LENGTH_LIMIT + 1).read_to_string(&mut text)?;
            ensure!(text.len() as u64 <= LENGTH_LIMIT, "longer than {LENGTH_LIMIT} bytes; expected a configuration");
            Ok(Self::judge(&text)?)
        };
        read().with_context(|| path.display().to_string())
    }

    /// Judges the text of an adapter_config.json, key by key.
    ///
    /// # Errors
    /// If the text is no JSON object, or describes anything but a plain LoRA (rsLoRA and patterns
    /// included); the error lists every refused key with the reason and what to do.
    pub fn judge(json: &str) -> Result<Self, Refused> {
        const FILE: &str = "adapter_config.json";
        let keys = match serde_json::from_str(json) {
            Ok(Value::Object(keys)) => keys,
            Ok(_) => return Err(Refused::of(FILE, "expected a JSON object")),
            Err(error) => return Err(Refused::of(FILE, format!("no valid JSON: {error}"))),
        };
        let mut judge = Judge::new(keys);
        ensure_lora(&mut judge)?;
        let rank = judge_rank(&mut judge);
        let alpha = judge_alpha(&mut judge);
        let rslora = judge.take_as("use_rslora", "true or false", Value::as_bool).unwrap_or(false);
        let targets = judge_targets(&mut judge);
        let rank_pattern = judge_patterns(&mut judge, "rank_pattern", "a rank of at least 1", positive);
        let alpha_pattern = judge_patterns(&mut judge, "alpha_pattern", "a finite number", finite);
        let facts = judge_facts(&mut judge);
        judge_bias(&mut judge);
        judge_start(&mut judge);
        judge.judge_the_rest();
        let notices = judge.finish()?;
        Ok(Self { rank, alpha, rslora, targets, facts, notices, rank_pattern, alpha_pattern })
    }

    /// The rank of the module at `path`: the first key of `rank_pattern` that matches it, else `r`.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn rank_of(&self, path: &str) -> Result<usize> {
        Ok(first_match(&self.rank_pattern, path).context("rank_pattern")?.unwrap_or(self.rank))
    }

    /// The scale of the module at `path`: `alpha / r`, or `alpha / sqrt(r)` under rsLoRA, after the
    /// patterns.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn scale_of(&self, path: &str) -> Result<f64> {
        let alpha = first_match(&self.alpha_pattern, path).context("alpha_pattern")?.unwrap_or(self.alpha);
        let rank = self.rank_of(path)? as f64;
        Ok(alpha / if self.rslora { rank.sqrt() } else { rank })
    }
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.matches(path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// That `peft_type` says LORA. If not, the other keys mean something else and are not judged.
fn ensure_lora(judge: &mut Judge) -> Result<(), Refused> {
    let reason = match judge.take("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => return Ok(()),
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("lora") => {
            format!("found \"{kind}\"; expected \"LORA\", the only spelling that PEFT loads")
        }
        Some(kind) => {
            format!("found {kind}; expected \"LORA\": only low-rank updates s B A are supported")
        }
        None => "missing; expected \"LORA\"".to_owned(),
    };
    Err(Refused::of("peft_type", reason))
}

fn judge_rank(judge: &mut Judge) -> usize {
    let rank = judge.take("r");
    if rank.is_none() {
        judge.notice("r", format!("missing: PEFT's default {PEFT_DEFAULT} is taken"));
    }
    rank.map_or(PEFT_DEFAULT, |value| {
        positive(&value).unwrap_or_else(|| {
            judge.refuse("r", format!("found {value}; expected a whole number of at least 1"));
            PEFT_DEFAULT
        })
    })
}

fn judge_alpha(judge: &mut Judge) -> f64 {
    let alpha = judge.take("lora_alpha");
    if alpha.is_none() {
        judge.notice("lora_alpha", format!("missing: PEFT's default {PEFT_DEFAULT} is taken"));
    }
    alpha.map_or(PEFT_DEFAULT as f64, |value| {
        finite(&value).unwrap_or_else(|| {
            judge.refuse("lora_alpha", format!("found {value}; expected a finite number"));
            PEFT_DEFAULT as f64
        })
    })
}

fn judge_targets(judge: &mut Judge) -> Targets {
    let mut targets = judge_target_modules(judge);
    if let Some(excluded) = judge_excluded(judge) {
        targets = targets.excluding(excluded);
    }
    let lists = judge.take_as("layers_pattern", "a string or a list of strings", strings).unwrap_or_default();
    let indexes = judge.take_as("layers_to_transform", "a layer's number or a list of them", layer_indexes);
    match indexes.filter(|indexes| !indexes.is_empty()) {
        Some(indexes) => {
            let narrowed = targets.clone().in_layers(indexes, &lists);
            judge.accept("layers_to_transform", narrowed).unwrap_or(targets)
        }
        None => {
            if lists.iter().any(|list| !list.is_empty()) {
                judge.refuse(
                    "layers_pattern",
                    "found without layers_to_transform, where PEFT refuses it too; remove it",
                );
            }
            targets
        }
    }
}

fn judge_target_modules(judge: &mut Judge) -> Targets {
    const KEY: &str = "target_modules";
    match judge.take(KEY) {
        None => {
            judge.notice(KEY, "null: PEFT would pick modules by the base's architecture; here the tensors decide");
            Targets::unstated()
        }
        Some(Value::String(text)) => judge.accept(KEY, Targets::string(&text)).unwrap_or_else(Targets::unstated),
        Some(value) => match strings(&value) {
            Some(names) if !names.is_empty() => Targets::list(names),
            _ => {
                judge.refuse(KEY, format!("found {value}; expected names, an expression, or \"all-linear\""));
                Targets::unstated()
            }
        },
    }
}

fn judge_excluded(judge: &mut Judge) -> Option<Names> {
    const KEY: &str = "exclude_modules";
    match judge.take(KEY)? {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => judge.accept(KEY, Pattern::whole(&text)).map(Names::Matching),
        value => match strings(&value) {
            Some(names) => Some(Names::List(names.into_iter().collect())),
            None => {
                judge.refuse(KEY, format!("found {value}; expected a list of names or an expression"));
                None
            }
        },
    }
}

/// The pairs of a pattern key, in the order of the file, for the first match wins.
fn judge_patterns<T>(
    judge: &mut Judge,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Vec<(Pattern, T)> {
    let Some(pairs) = judge.take_as(key, "an object", |value| value.as_object().cloned()) else {
        return Vec::new();
    };
    let mut patterns = Vec::with_capacity(pairs.len());
    for (source, value) in pairs {
        let pattern = judge.accept(key, Pattern::suffix(&source));
        match (pattern, read(&value)) {
            (Some(pattern), Some(value)) => patterns.push((pattern, value)),
            (_, None) => judge.refuse(key, format!("found {value} for `{source}`; expected {expected}")),
            (None, _) => {}
        }
    }
    patterns
}

fn judge_facts(judge: &mut Judge) -> Facts {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let expected = "CAUSAL_LM, SEQ_CLS, SEQ_2_SEQ_LM, TOKEN_CLS, QUESTION_ANS or FEATURE_EXTRACTION";
    let task = judge.take_as("task_type", expected, |value| serde_json::from_value(value.clone()).ok());
    let task_type = task.unwrap_or_default();
    if task_type != TaskType::CausalLm {
        judge.notice("task_type", format!("{task_type:?}: only the language model's own layers are adapted here"));
    }
    Facts {
        base_model: judge.take_as("base_model_name_or_path", "a string", text),
        revision: judge.take_as("revision", "a string", text),
        task_type,
        dropout: judge.take_as("lora_dropout", "a finite number", finite).unwrap_or(0.0),
        fan_in_fan_out: judge.take_as("fan_in_fan_out", "true or false", Value::as_bool).unwrap_or(false),
    }
}

fn judge_bias(judge: &mut Judge) {
    if let Some(bias) = judge.take("bias")
        && bias != "none"
    {
        judge.refuse(
            "bias",
            format!("found {bias}; expected \"none\": trained biases of the base are no low-rank update"),
        );
    }
}

/// `init_lora_weights`: where training started from a changed base, A and B mean nothing on the
/// published one.
fn judge_start(judge: &mut Judge) {
    const KEY: &str = "init_lora_weights";
    let Some(start) = judge.take(KEY) else { return };
    let known = match &start {
        Value::Bool(_) => true,
        Value::String(name) => {
            let name = name.split_once("_niter_").map_or(name.as_str(), |(name, _)| name);
            if CHANGES_THE_BASE.contains(&name) {
                let advice = "save it with PEFT's path_initial_model_for_weight_conversion, \
                    which makes it a plain LoRA";
                return judge.refuse(KEY, format!("found {start}, which also changes the base's weights; {advice}"));
            }
            LEAVES_THE_BASE.contains(&name)
        }
        _ => false,
    };
    if !known {
        judge.refuse(KEY, format!("found {start}; expected true, false or one of {LEAVES_THE_BASE:?}"));
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

/// A number, or a list of numbers.
fn layer_indexes(value: &Value) -> Option<BTreeSet<usize>> {
    let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
    match value {
        Value::Array(items) => items.iter().map(index).collect(),
        _ => index(value).map(|index| [index].into()),
    }
}
