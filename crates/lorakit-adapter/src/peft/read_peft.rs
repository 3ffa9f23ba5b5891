//! Puts an adapter together from its configuration and its tensors, and accounts for every one of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::adapter::Adapter;
use crate::low_rank::LowRank;
use crate::name_list::quote_names;
use crate::peft::adapter_files::{CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE};
use crate::peft::peft_config::PeftConfig;
use crate::peft::stored_tensor::{StoredTensor, read_tensors};
use crate::peft::target_modules::{Targets, missing_targets};
use crate::peft::tensor_key::{Factor, PREFIX, TensorKey};
use crate::warning::Warning;

impl Adapter {
    /// Reads a PEFT folder. The weights stay in their file, which is mapped; all of it is judged:
    /// every key of the configuration, and every tensor's name, shape and values.
    ///
    /// # Errors
    /// If the folder holds anything but one whole, plain LoRA adapter. The error names the file and
    /// the key or tensor, what was expected and found, and what to do.
    pub fn read(dir: &Path) -> Result<Self> {
        ensure_config(dir)?;
        let config = PeftConfig::read(&dir.join(CONFIG_FILE))?;
        let weights = dir.join(WEIGHTS_FILE);
        ensure_weights(dir)?;
        read_tensors(&weights)
            .and_then(|tensors| from_parts(config, tensors))
            .with_context(|| weights.display().to_string())
    }

    /// An adapter from a configuration and tensors that come from elsewhere than a safetensors
    /// file, judged as strictly: key, shape and row-major values of each.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_tensors(
        config: PeftConfig,
        tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    ) -> Result<Self> {
        let tensors = tensors.into_iter().map(|(key, shape, values)| StoredTensor::owned(key, shape, values));
        from_parts(config, tensors.collect())
    }
}

/// That `dir` has an adapter_config.json; else whether it is where PEFT keeps several adapters, a
/// folder each.
fn ensure_config(dir: &Path) -> Result<()> {
    if dir.join(CONFIG_FILE).is_file() {
        return Ok(());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("{}: no folder of an adapter", dir.display()))?;
    let inner = entries.flatten().map(|entry| entry.path()).find(|path| path.join(CONFIG_FILE).is_file());
    match inner {
        Some(inner) => {
            bail!("{}: no {CONFIG_FILE}; did you mean {}?", dir.display(), inner.display())
        }
        None => bail!("{}: no {CONFIG_FILE}; expected the folder that PEFT's save_pretrained wrote", dir.display()),
    }
}

/// That `dir` has an adapter_model.safetensors; else what to do with what it has instead.
fn ensure_weights(dir: &Path) -> Result<()> {
    let folder = dir.display();
    if dir.join(WEIGHTS_FILE).is_file() {
        return Ok(());
    }
    if dir.join(PICKLE_FILE).is_file() {
        bail!(
            "{folder}: found {PICKLE_FILE}, a pickle; expected {WEIGHTS_FILE}. Convert it with \
             `lorakit library import`, or save it again with PEFT's save_pretrained \
             (safe_serialization=True)"
        );
    }
    let shard = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).find(|name| {
        let name = name.to_string_lossy();
        name.starts_with("adapter_model-") || name.ends_with(".safetensors.index.json")
    });
    if let Some(shard) = shard {
        bail!("{folder}: found {}; expected one {WEIGHTS_FILE}: join its parts, as PEFT needs it too", shard.display());
    }
    bail!("{folder}: no {WEIGHTS_FILE}; expected the folder that PEFT's save_pretrained wrote");
}

/// A module's tensors, as far as they were found.
#[derive(Default)]
struct Pair {
    a: Option<StoredTensor>,
    b: Option<StoredTensor>,
}

/// The adapter that `config` describes and `tensors` hold.
pub(crate) fn from_parts(config: PeftConfig, tensors: Vec<StoredTensor>) -> Result<Adapter> {
    ensure!(!tensors.is_empty(), "the file holds no tensors");
    let mut warnings = config.warnings.clone();
    let pairs = paired(tensors, &mut warnings)?;
    let paths: Vec<&str> = pairs.keys().map(String::as_str).collect();
    ensure_targets(&config.targets, &paths)?;
    let mut modules = BTreeMap::new();
    for (path, pair) in pairs {
        let update = low_rank(&config, &path, pair)?;
        modules.insert(path, update);
    }
    Ok(Adapter::described(modules, config, warnings))
}

/// The tensors by module, all of them understood.
fn paired(tensors: Vec<StoredTensor>, warnings: &mut Vec<Warning>) -> Result<BTreeMap<String, Pair>> {
    let keys: Vec<String> = tensors.iter().map(|tensor| tensor.key.clone()).collect();
    let parsed = understood(&keys)?;
    note_leniency(&parsed, warnings)?;
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for (key, tensor) in parsed.iter().zip(tensors) {
        let pair = pairs.entry(key.module.to_owned()).or_default();
        let place = match key.factor {
            Factor::A => &mut pair.a,
            Factor::B => &mut pair.b,
        };
        if let Some(first) = place.replace(tensor) {
            return Err(anyhow!(
                "two tensors for `{}`: `{}` and another; remove one",
                key.factor.key(key.module),
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
        quote_names(&same)
    ))
}

/// Notes names that PEFT would not have written, and refuses a dump of several adapters at once.
fn note_leniency(keys: &[TensorKey<'_>], warnings: &mut Vec<Warning>) -> Result<()> {
    let adapters: BTreeSet<_> = keys.iter().map(|key| key.adapter).collect();
    let names: Vec<_> = adapters.iter().flatten().collect();
    ensure!(
        adapters.len() <= 1,
        "tensors of several adapters in one file: {}; save each on its own",
        quote_names(&names)
    );
    if let Some(name) = names.first() {
        warnings.push(Warning::new(format!("lora_A.{name}.weight"), "the adapter's name within the keys was left out"));
    }
    if let Some(key) = keys.iter().find(|key| !key.prefixed) {
        let text = format!(
            "keys without the prefix `{PREFIX}`, which PEFT would silently not load, were taken \
             to have it"
        );
        warnings.push(Warning::new(key.module, text));
    }
    Ok(())
}

/// That configuration and tensors agree on which modules are adapted.
fn ensure_targets(targets: &Targets, paths: &[&str]) -> Result<()> {
    if !targets.is_specified() {
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
        quote_names(&strangers)
    );
    let unmatched = targets.unmatched(paths)?;
    ensure!(
        unmatched.is_empty(),
        "adapter_config.json names what no tensor is for: {}; PEFT would put random weights \
         there. Remove it from the configuration",
        unmatched.join(", ")
    );
    let missing = missing_targets(targets, paths)?;
    ensure!(
        missing.is_empty(),
        "no tensors for {}, though target_modules selects them like their siblings; the file is \
         not whole. If the base has no such modules, name those that it has by whole paths in \
         target_modules",
        quote_names(&missing)
    );
    Ok(())
}

/// The update of one module, its tensors as large as the configuration says.
fn low_rank(config: &PeftConfig, path: &str, pair: Pair) -> Result<LowRank> {
    let missing = |factor: Factor| anyhow!("the tensor `{}` is missing; the file is not whole", factor.key(path));
    let a = pair.a.ok_or_else(|| missing(Factor::A))?;
    let b = pair.b.ok_or_else(|| missing(Factor::B))?;
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
