//! Reads an adapter folder, and accounts for every one of its tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::low_rank::LowRank;
use crate::name_list::quote_names;
use crate::peft::adapter_files::{CONFIG_FILE, WEIGHTS_FILE};
use crate::peft::base_tensors::without_base_tensors;
use crate::peft::peft_config::PeftConfig;
use crate::peft::stored_tensor::{StoredTensor, map_tensors};
use crate::peft::target_modules::{Targets, missing_targets};
use crate::peft::tensor_key::{Factor, PREFIX, TensorKey};
use crate::peft::weight_files::WeightFiles;
use crate::warning::Warning;

impl Adapter {
    /// Reads a PEFT folder. The weights stay in their file, which is mapped, but everything is checked: every key of the
    /// configuration, and every tensor's name, shape and values.
    ///
    /// # Errors
    /// If the folder holds anything but one complete, plain LoRA adapter. The error names the file and the key or tensor,
    /// what was expected and found, and what to do.
    pub fn read(dir: &Path) -> Result<Self> {
        check_config_exists(dir)?;
        let config = PeftConfig::read(&dir.join(CONFIG_FILE))?;
        let (tensors, place) = safetensors_of(dir)?;
        from_parts(config, tensors).within_file(&place)
    }

    /// An adapter from a configuration and tensors from elsewhere than a safetensors file, checked as strictly: key,
    /// shape and row-major values of each.
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

/// The tensors of the safetensors files in `dir`, and the file that errors name.
fn safetensors_of(dir: &Path) -> Result<(Vec<StoredTensor>, PathBuf)> {
    let files = match WeightFiles::find(dir)? {
        WeightFiles::Safetensors(files) => files,
        WeightFiles::Pickle(files) => {
            let found = files.iter().filter_map(|file| file.file_name()).map(|name| name.display().to_string());
            return Err(AdapterError::AdapterFolder(format!(
                "{}: found {}, a pickle; expected {WEIGHTS_FILE}. `lorakit library add` and `library import` read it into a \
                 library; or save it again with PEFT's save_pretrained (safe_serialization=True)",
                dir.display(),
                found.collect::<Vec<_>>().join(", ")
            )));
        }
    };
    let tensors = files.iter().map(|file| map_tensors(file)).collect::<Result<Vec<_>>>()?.into_iter().flatten();
    let place = match &files[..] {
        [file] => file.clone(),
        _ => dir.to_owned(),
    };
    Ok((tensors.collect(), place))
}

/// Checks that `dir` has an adapter_config.json, or says whether it is where PEFT keeps several adapters, a folder each.
fn check_config_exists(dir: &Path) -> Result<()> {
    if dir.join(CONFIG_FILE).is_file() {
        return Ok(());
    }
    let place = dir.display();
    let entries = fs::read_dir(dir).within(|| format!("{place}: not an adapter folder"))?;
    let inner = entries.flatten().map(|entry| entry.path()).find(|path| path.join(CONFIG_FILE).is_file());
    Err(AdapterError::AdapterFolder(match inner {
        Some(inner) => format!("{place}: no {CONFIG_FILE}; did you mean {}?", inner.display()),
        None => format!("{place}: no {CONFIG_FILE}; expected the folder that PEFT's save_pretrained wrote"),
    }))
}

/// A module's tensors found so far.
#[derive(Default)]
struct Pair {
    a: Option<StoredTensor>,
    b: Option<StoredTensor>,
    embedding: bool,
}

/// The adapter with the configuration `config` and the weights `tensors`.
pub(crate) fn from_parts(mut config: PeftConfig, tensors: Vec<StoredTensor>) -> Result<Adapter> {
    if tensors.is_empty() {
        return Err(AdapterError::Tensors("the file holds no tensors".to_owned()));
    }
    let mut warnings = config.warnings.clone();
    let (tensors, base_tensors) = without_base_tensors(tensors, &mut warnings)?;
    let pairs = pair_by_module(tensors, &mut warnings)?;
    // The head of a tied embedding is adapted with it, whether or not target_modules names it.
    let is_tied_head = |path: &str| config.weight_tying && path.rsplit('.').next() == Some("lm_head");
    let paths: Vec<&str> = pairs.keys().map(String::as_str).filter(|path| !is_tied_head(path)).collect();
    check_targets(&config.targets, &paths)?;
    let mut modules = BTreeMap::new();
    for (path, pair) in pairs {
        if pair.embedding {
            config.metadata.embeddings.insert(path.clone());
        }
        let update = low_rank(&config, &path, pair)?;
        modules.insert(path, update);
    }
    Ok(Adapter::from_config(modules, config, warnings).with_base_tensors(base_tensors))
}

/// The tensors by module, each one recognised.
fn pair_by_module(tensors: Vec<StoredTensor>, warnings: &mut Vec<Warning>) -> Result<BTreeMap<String, Pair>> {
    let keys: Vec<String> = tensors.iter().map(|tensor| tensor.key.clone()).collect();
    let parsed = parse_keys(&keys)?;
    warn_of_leniency(&parsed, warnings)?;
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for (key, tensor) in parsed.iter().zip(tensors) {
        let pair = pairs.entry(key.module.to_owned()).or_default();
        pair.embedding |= key.embedding;
        let slot = match key.factor {
            Factor::A => &mut pair.a,
            Factor::B => &mut pair.b,
        };
        if let Some(first) = slot.replace(tensor) {
            return Err(AdapterError::Tensors(format!(
                "two tensors for `{}`: `{}` and another; remove one",
                key.factor.key(key.module, key.embedding),
                first.key
            )));
        }
    }
    Ok(pairs)
}

fn parse_keys(keys: &[String]) -> Result<Vec<TensorKey<'_>>> {
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
    Err(AdapterError::Tensors(format!(
        "tensors that do not belong to a plain LoRA: {} ({meaning}); expected only lora_A.weight and lora_B.weight of each \
         module. Train without it, or remove it if the adapter means the same without",
        quote_names(&same)
    )))
}

/// Warns of names that PEFT would not have written, and refuses a dump of several adapters at once.
fn warn_of_leniency(keys: &[TensorKey<'_>], warnings: &mut Vec<Warning>) -> Result<()> {
    let adapters: BTreeSet<_> = keys.iter().map(|key| key.adapter).collect();
    let names: Vec<_> = adapters.iter().flatten().collect();
    if adapters.len() > 1 {
        let names = quote_names(&names);
        return Err(AdapterError::Tensors(format!(
            "tensors of several adapters in one file: {names}; save each on its own"
        )));
    }
    if let Some(name) = names.first() {
        warnings.push(Warning::new(format!("lora_A.{name}.weight"), "the adapter's name within the keys was left out"));
    }
    if let Some(key) = keys.iter().find(|key| !key.prefixed) {
        let text =
            format!("keys without the prefix `{PREFIX}`, which PEFT would silently not load, were taken to have it");
        warnings.push(Warning::new(key.module, text));
    }
    Ok(())
}

/// Checks that configuration and tensors agree on which modules are adapted.
fn check_targets(targets: &Targets, paths: &[&str]) -> Result<()> {
    if !targets.is_specified() {
        return Ok(());
    }
    let mut unexpected = Vec::new();
    for path in paths {
        if !targets.matches(path)? {
            unexpected.push(*path);
        }
    }
    let unmatched = targets.unmatched(paths)?;
    let missing = missing_targets(targets, paths)?;
    let problem = if !unexpected.is_empty() {
        format!(
            "tensors for modules that target_modules of adapter_config.json does not select: {}; PEFT would drop them \
             silently. Add them to target_modules, or remove the tensors",
            quote_names(&unexpected)
        )
    } else if !unmatched.is_empty() {
        format!(
            "adapter_config.json names what no tensor is for: {}; PEFT would put random weights there. Remove it from the \
             configuration",
            unmatched.join(", ")
        )
    } else if !missing.is_empty() {
        format!(
            "no tensors for {}, though target_modules selects them like their counterparts in other layers; the file is \
             incomplete. If the base has no such modules, list the modules that it has by whole paths in target_modules",
            quote_names(&missing)
        )
    } else {
        return Ok(());
    };
    Err(AdapterError::Tensors(problem))
}

/// The update of one module, its tensors of the rank that the configuration says.
fn low_rank(config: &PeftConfig, path: &str, pair: Pair) -> Result<LowRank> {
    let missing = |factor: Factor| {
        AdapterError::Tensors(format!(
            "the tensor `{}` is missing; the file is incomplete",
            factor.key(path, pair.embedding)
        ))
    };
    let a = pair.a.as_ref().ok_or_else(|| missing(Factor::A))?.clone();
    let b = pair.b.as_ref().ok_or_else(|| missing(Factor::B))?.clone();
    let rank = config.rank_of(path)?;
    let ([a_rows, a_cols], [b_rows, b_cols]) = (a.dimensions()?, b.dimensions()?);
    let wrong_rank = |key: &str, found: [usize; 2], expected: [usize; 2]| {
        AdapterError::Tensors(format!(
            "tensor `{key}`: found shape {found:?}; expected {expected:?}: the rank is set by r and rank_pattern in \
             adapter_config.json; correct it there, or use the tensors that belong to it"
        ))
    };
    if a_rows != rank {
        return Err(wrong_rank(&a.key, [a_rows, a_cols], [rank, a_cols]));
    }
    if b_cols != rank {
        return Err(wrong_rank(&b.key, [b_rows, b_cols], [b_rows, rank]));
    }
    LowRank::new(a.matrix()?, b.matrix()?, config.scale_of(path)?).within(|| format!("module `{path}`"))
}
