//! Puts an adapter together from its configuration and its tensors, and accounts for every one of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, ensure};

use crate::adapter::Adapter;
use crate::low_rank::LowRank;
use crate::notice::Notice;
use crate::peft_config::PeftConfig;
use crate::several::several;
use crate::siblings::missing_siblings;
use crate::target::Targets;
use crate::tensor_key::{Half, PREFIX, TensorKey};
use crate::weights_file::StoredTensor;

/// A module's tensors, as far as they were found.
#[derive(Default)]
struct Pair {
    a: Option<StoredTensor>,
    b: Option<StoredTensor>,
}

/// The adapter that `config` describes and `tensors` hold.
pub(crate) fn assemble(config: PeftConfig, tensors: Vec<StoredTensor>) -> Result<Adapter> {
    ensure!(!tensors.is_empty(), "the file holds no tensors");
    let mut notices = config.notices.clone();
    let pairs = paired(tensors, &mut notices)?;
    let paths: Vec<&str> = pairs.keys().map(String::as_str).collect();
    ensure_targets(&config.targets, &paths)?;
    let mut modules = BTreeMap::new();
    for (path, pair) in pairs {
        let update = low_rank(&config, &path, pair)?;
        modules.insert(path, update);
    }
    Ok(Adapter::described(modules, config, notices))
}

/// The tensors by module, all of them understood.
fn paired(tensors: Vec<StoredTensor>, notices: &mut Vec<Notice>) -> Result<BTreeMap<String, Pair>> {
    let keys: Vec<String> = tensors.iter().map(|tensor| tensor.key.clone()).collect();
    let parsed = understood(&keys)?;
    note_leniency(&parsed, notices)?;
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for (key, tensor) in parsed.iter().zip(tensors) {
        let pair = pairs.entry(key.module.to_owned()).or_default();
        let place = match key.half {
            Half::A => &mut pair.a,
            Half::B => &mut pair.b,
        };
        if let Some(first) = place.replace(tensor) {
            return Err(anyhow!(
                "two tensors for `{}`: `{}` and another; remove one",
                key.half.key(key.module),
                first.key
            ));
        }
    }
    Ok(pairs)
}

fn understood(keys: &[String]) -> Result<Vec<TensorKey<'_>>> {
    let mut parsed = Vec::with_capacity(keys.len());
    let mut foreign = Vec::new();
    for key in keys {
        match TensorKey::parse(key) {
            Ok(key) => parsed.push(key),
            Err(meaning) => foreign.push((key, meaning)),
        }
    }
    let Some((_, meaning)) = foreign.first() else {
        return Ok(parsed);
    };
    let same: Vec<_> = foreign.iter().filter(|(_, other)| other == meaning).map(|(key, _)| key).collect();
    Err(anyhow!(
        "tensors that are no LoRA's: {} ({meaning}); expected lora_A.weight and lora_B.weight of \
         each module alone. Train without it, or remove it where the adapter means the same \
         without",
        several(&same)
    ))
}

/// Notes names that PEFT would not have written, and refuses a dump of several adapters at once.
fn note_leniency(keys: &[TensorKey<'_>], notices: &mut Vec<Notice>) -> Result<()> {
    let adapters: BTreeSet<_> = keys.iter().map(|key| key.adapter).collect();
    let names: Vec<_> = adapters.iter().flatten().collect();
    ensure!(adapters.len() <= 1, "tensors of several adapters in one file: {}; save each on its own", several(&names));
    if let Some(name) = names.first() {
        notices.push(Notice::new(format!("lora_A.{name}.weight"), "the adapter's name within the keys was left out"));
    }
    if let Some(key) = keys.iter().find(|key| !key.prefixed) {
        let text = format!(
            "keys without the prefix `{PREFIX}`, which PEFT would silently not load, were taken \
             to have it"
        );
        notices.push(Notice::new(key.module, text));
    }
    Ok(())
}

/// That configuration and tensors agree on which modules are adapted.
fn ensure_targets(targets: &Targets, paths: &[&str]) -> Result<()> {
    if !targets.are_stated() {
        return Ok(());
    }
    let mut strangers = Vec::new();
    for path in paths {
        if !targets.matches(path)? {
            strangers.push(*path);
        }
    }
    ensure!(
        strangers.is_empty(),
        "tensors for modules that target_modules of adapter_config.json does not select: {}; PEFT \
         would drop them silently. Add them to target_modules, or remove the tensors",
        several(&strangers)
    );
    let idle = targets.idle(paths)?;
    ensure!(
        idle.is_empty(),
        "adapter_config.json names what no tensor is for: {}; PEFT would put random weights \
         there. Remove it from the configuration",
        idle.join(", ")
    );
    let missing = missing_siblings(targets, paths)?;
    ensure!(
        missing.is_empty(),
        "no tensors for {}, though target_modules selects them like their siblings; the file is \
         not whole. If the base has no such modules, name those that it has by whole paths in \
         target_modules",
        several(&missing)
    );
    Ok(())
}

/// The update of one module, its tensors as large as the configuration says.
fn low_rank(config: &PeftConfig, path: &str, pair: Pair) -> Result<LowRank> {
    let missing = |half: Half| anyhow!("the tensor `{}` is missing; the file is not whole", half.key(path));
    let a = pair.a.ok_or_else(|| missing(Half::A))?;
    let b = pair.b.ok_or_else(|| missing(Half::B))?;
    let rank = config.rank_of(path)?;
    let ([a_rows, a_cols], [b_rows, b_cols]) = (a.dimensions()?, b.dimensions()?);
    let advice = "the rank is that of r and rank_pattern in adapter_config.json; \
                  correct it there, or use the tensors that belong to it";
    ensure!(
        a_rows == rank,
        "tensor `{}`: found shape [{a_rows}, {a_cols}]; expected [{rank}, {a_cols}]: {advice}",
        a.key
    );
    ensure!(
        b_cols == rank,
        "tensor `{}`: found shape [{b_rows}, {b_cols}]; expected [{b_rows}, {rank}]: {advice}",
        b.key
    );
    LowRank::new(a.matrix()?, b.matrix()?, config.scale_of(path)?).with_context(|| format!("module `{path}`"))
}
