//! The adapter_config.json of an adapter, with the keys that PEFT 0.21.2 writes for a plain LoRA.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result};
use crate::low_rank::LowRank;

/// The version of PEFT whose keys are written.
const PEFT_VERSION: &str = "0.21.2";

/// The text of adapter_config.json: keys sorted, two spaces of indent, as PEFT writes it.
///
/// `r` and `lora_alpha` are those of most modules. `rank_pattern` and `alpha_pattern` name the others by their whole,
/// anchored paths, so that PEFT's rule (the first key that matches the end of a path wins) gives each module its own.
pub(crate) fn config_json(adapter: &Adapter) -> Result<String> {
    let ranks = modules(adapter, |update| Number::whole(update.rank()));
    let metadata = adapter.metadata();
    let alphas = modules(adapter, |update| Number::of(alpha_of(update, metadata.rslora)));
    let (rank, alpha) = (most_common(&ranks), most_common(&alphas));
    let specific = json!({
        "alpha_pattern": pattern(&alphas, alpha),
        "base_model_name_or_path": metadata.base_model,
        "fan_in_fan_out": metadata.fan_in_fan_out,
        "lora_alpha": alpha.to_json(),
        "lora_dropout": metadata.dropout,
        "r": rank.to_json(),
        "rank_pattern": pattern(&ranks, rank),
        "revision": metadata.revision,
        "target_modules": adapter.target_names().target_modules(adapter.modules().keys()),
        "task_type": metadata.task_type,
        "use_rslora": metadata.rslora,
    });
    let mut keys: BTreeMap<String, Value> = plain_lora();
    if let Value::Object(specific) = specific {
        keys.extend(specific);
    }
    serde_json::to_string_pretty(&keys).map_err(AdapterError::Serialize)
}

/// The alpha that gives an update its scale.
fn alpha_of(update: &LowRank, rslora: bool) -> f64 {
    let rank = update.rank() as f64;
    if !rslora {
        return update.scale() * rank;
    }
    // The root of a rank is rounded, and an alpha of 16 must not become 16.000000000000004.
    let (alpha, whole) = (update.scale() * rank.sqrt(), (update.scale() * rank.sqrt()).round());
    if (alpha - whole).abs() <= 1e-12 * alpha.abs() { whole } else { alpha }
}

/// The keys that have the same value for every plain LoRA.
fn plain_lora() -> BTreeMap<String, Value> {
    let fixed = json!({
        "bias": "none",
        "ensure_weight_tying": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "loftq_config": {},
        "lora_bias": false,
        "megatron_core": "megatron.core",
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "qalora_group_size": 16,
        "use_dora": false,
        "use_qalora": false,
    });
    const UNUSED: &[&str] = &[
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "lora_ga_config",
        "megatron_config",
        "modules_to_save",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "velora_config",
    ];
    let mut keys: BTreeMap<String, Value> = UNUSED.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
    if let Value::Object(fixed) = fixed {
        keys.extend(fixed);
    }
    keys
}

/// A rank or an alpha that can be compared and counted: an integer where possible, as in PEFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Number {
    Whole(i64),
    /// The bits of a finite f64.
    Fraction(u64),
}

impl Number {
    fn whole(number: usize) -> Self {
        i64::try_from(number).map_or(Self::of(number as f64), Self::Whole)
    }

    fn of(number: f64) -> Self {
        const EXACT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
        if number.fract() == 0.0 && number.abs() < EXACT {
            Self::Whole(number as i64)
        } else {
            Self::Fraction(number.to_bits())
        }
    }

    fn to_json(self) -> Value {
        match self {
            Self::Whole(number) => number.into(),
            Self::Fraction(bits) => f64::from_bits(bits).into(),
        }
    }
}

fn modules(adapter: &Adapter, number: impl Fn(&LowRank) -> Number) -> BTreeMap<&str, Number> {
    adapter.modules().iter().map(|(path, update)| (path.as_str(), number(update))).collect()
}

/// The most common number; of equally common ones the smallest.
fn most_common(numbers: &BTreeMap<&str, Number>) -> Number {
    let mut counts: BTreeMap<Number, usize> = BTreeMap::new();
    for number in numbers.values() {
        *counts.entry(*number).or_default() += 1;
    }
    let most = counts.into_iter().max_by(|(a, many), (b, more)| many.cmp(more).then(b.cmp(a)));
    most.map_or(Number::Whole(0), |(number, _)| number)
}

/// The modules whose number differs from `usual`, as anchored expressions.
fn pattern(numbers: &BTreeMap<&str, Number>, usual: Number) -> BTreeMap<String, Value> {
    numbers
        .iter()
        .filter(|(_, number)| **number != usual)
        .map(|(path, number)| (format!("^{}", fancy_regex::escape(path)), number.to_json()))
        .collect()
}
