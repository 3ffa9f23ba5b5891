//! The adapter_config.json of an adapter: what a plain LoRA needs, with keys that PEFT knows since 0.7.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result};
use crate::low_rank::LowRank;
use crate::peft::target_modules::ends_with_name;

/// The text of adapter_config.json: keys sorted, two spaces of indent, as PEFT writes it. Keys at PEFT's defaults are left
/// out, since its older versions refuse keys that they do not know.
///
/// `r` and `lora_alpha` are those of most modules. `rank_pattern` and `alpha_pattern`, where they are needed, name the
/// others by expressions that match one path each, so that PEFT's rule (the first key that matches the end of a path wins)
/// gives each module its own.
pub(crate) fn config_json(adapter: &Adapter) -> Result<String> {
    let ranks = modules(adapter, |update| Number::whole(update.rank()));
    let metadata = adapter.metadata();
    let alphas = modules(adapter, |update| Number::of(alpha_of(update, metadata.rslora)));
    let (rank, alpha) = (most_common(&ranks), most_common(&alphas));
    let all = json!({
        "alpha_pattern": pattern(&alphas, alpha),
        "base_model_name_or_path": metadata.base_model,
        "bias": "none",
        "fan_in_fan_out": metadata.fan_in_fan_out,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha.to_json(),
        "lora_dropout": metadata.dropout,
        "peft_type": "LORA",
        "r": rank.to_json(),
        "rank_pattern": pattern(&ranks, rank),
        "revision": metadata.revision,
        "target_modules": adapter.target_names().target_modules(adapter.modules().keys()),
        "task_type": metadata.task_type,
        "use_rslora": metadata.rslora.then_some(true),
    });
    let mut keys = BTreeMap::new();
    if let Value::Object(all) = all {
        let needed = |value: &Value| !value.is_null() && value.as_object().is_none_or(|pattern| !pattern.is_empty());
        keys.extend(all.into_iter().filter(|(_, value)| needed(value)));
    }
    serde_json::to_string_pretty(&keys).map_err(AdapterError::Serialize)
}

/// The alpha that gives an update its scale: whole where such a one does, since products and roots are rounded, and an alpha
/// of 16 must not become 16.000000000000004.
fn alpha_of(update: &LowRank, rslora: bool) -> f64 {
    let (scale, rank) = (update.scale(), update.rank() as f64);
    let alpha = scale * if rslora { rank.sqrt() } else { rank };
    let whole = alpha.round();
    let is_whole = if rslora { (alpha - whole).abs() <= 1e-12 * alpha.abs() } else { whole / rank == scale };
    if is_whole { whole } else { alpha }
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

/// The modules whose number differs from `usual`, as expressions that match their paths alone.
fn pattern(numbers: &BTreeMap<&str, Number>, usual: Number) -> BTreeMap<String, Value> {
    let key = |path: &str| pattern_key(path, numbers.keys().copied());
    numbers.iter().filter(|(_, number)| **number != usual).map(|(path, number)| (key(path), number.to_json())).collect()
}

/// The expression for `path` among `paths`: what follows its first segment, since PEFT before 0.14 matches a key only
/// after a dot; or the whole path, anchored, where another path ends alike.
fn pattern_key<'a>(path: &str, mut paths: impl Iterator<Item = &'a str>) -> String {
    match path.split_once('.') {
        Some((_, rest)) if !paths.any(|other| other != path && ends_with_name(other, rest)) => {
            fancy_regex::escape(rest).into_owned()
        }
        _ => format!("^{}", fancy_regex::escape(path)),
    }
}
