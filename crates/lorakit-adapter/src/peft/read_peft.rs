//! Reads an adapter folder, and accounts for every one of its tensors.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::low_rank::LowRank;
use crate::name_list::quote_names;
use crate::peft::adapter_files::CONFIG_FILE;
use crate::peft::adapter_tensor::AdapterTensor;
use crate::peft::base_tensors::{Biases, without_base_tensors};
use crate::peft::peft_config::PeftConfig;
use crate::peft::selection::Selection;
use crate::peft::target_modules::Targets;
use crate::peft::tensor_key::{Factor, TensorKey};
use crate::peft::weight_files::PeftWeightFiles;
use crate::peft::wrapper_prefix::PREFIX;
use crate::warning::Warning;

impl Adapter {
    /// Reads a PEFT folder: its weights in one file or in shards, safetensors or a pickle, nothing of which is executed.
    /// Weights in safetensors files stay there, mapped, but everything is checked: every key of the configuration, and
    /// every tensor's name, shape and values.
    ///
    /// # Errors
    /// If the folder holds anything but one complete, plain LoRA adapter. The error names the file and the key or tensor,
    /// what was expected and found, and what to do.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::read_with(dir, Biases::Refused)
    }

    /// As [`read`](Self::read), but [`Adapter::base_tensors`] also has biases other than zero, which the caller compares
    /// with the base's: others are no low-rank update.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with_base_biases(dir: &Path) -> Result<Self> {
        Self::read_with(dir, Biases::OfBase)
    }

    fn read_with(dir: &Path, biases: Biases) -> Result<Self> {
        check_config_exists(dir)?;
        let config = PeftConfig::read(&dir.join(CONFIG_FILE))?;
        let files = PeftWeightFiles::find(dir)?;
        let tensors = files.tensors()?;
        from_parts(config, tensors, biases).within_file(files.place(dir))
    }
}

/// Checks that `dir` has an adapter_config.json, or says whether it is where PEFT keeps several adapters, a folder each.
fn check_config_exists(dir: &Path) -> Result<()> {
    if dir.join(CONFIG_FILE).is_file() {
        return Ok(());
    }
    let place = dir.display();
    if dir.is_file() {
        return Err(AdapterError::AdapterFolder(format!("{place}: {}", of_file(dir))));
    }
    let entries = fs::read_dir(dir).within(|| format!("{place}: not an adapter folder"))?;
    let inner = entries.flatten().map(|entry| entry.path()).filter(|path| path.join(CONFIG_FILE).is_file());
    let mut inner: Vec<String> = inner.map(|path| path.display().to_string()).collect();
    inner.sort_unstable();
    Err(AdapterError::AdapterFolder(match inner.as_slice() {
        [] => format!("{place}: no {CONFIG_FILE}; expected the folder that PEFT's save_pretrained wrote"),
        [one] => format!("{place}: no {CONFIG_FILE}; did you mean `{one}`?"),
        [first, .., last] => format!(
            "{place}: no {CONFIG_FILE}, but {} folders with one; give one or all of them: {first} ... {last}",
            inner.len()
        ),
    }))
}

/// What to do about a file where a folder is expected.
fn of_file(path: &Path) -> String {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return "a GGUF adapter; add it to a library with `lorakit library add`, and use --library".to_owned();
    }
    let folder = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    match folder.filter(|folder| folder.join(CONFIG_FILE).is_file()) {
        Some(folder) => format!("a file of an adapter; give its folder {}", folder.display()),
        None => "a file; expected the folder that PEFT's save_pretrained wrote".to_owned(),
    }
}

/// A module's tensors found so far.
#[derive(Default)]
struct Pair {
    a: Option<AdapterTensor>,
    b: Option<AdapterTensor>,
    embedding: bool,
    /// The module's path as the file has it.
    raw_path: String,
}

impl Pair {
    fn factor(&self, factor: Factor) -> Option<&AdapterTensor> {
        match factor {
            Factor::A => self.a.as_ref(),
            Factor::B => self.b.as_ref(),
        }
    }
}

/// The adapter with the configuration `config` and the weights `tensors`.
pub(crate) fn from_parts(mut config: PeftConfig, tensors: Vec<AdapterTensor>, biases: Biases) -> Result<Adapter> {
    if tensors.is_empty() {
        return Err(AdapterError::Tensors("the file holds no tensors".to_owned()));
    }
    let mut warnings = config.warnings.clone();
    let (tensors, base_tensors) = without_base_tensors(tensors, biases, &mut warnings)?;
    let mut pairs = pair_by_module(tensors, &mut warnings)?;
    // The head of a tied embedding is adapted with it, whether or not target_modules names it.
    let weight_tying = config.weight_tying;
    let is_tied_head = |path: &str| weight_tying && path.rsplit('.').next() == Some("lm_head");
    let paths = pairs.iter().filter(|(path, _)| !is_tied_head(path));
    let paths = paths.map(|(path, pair)| (path.clone(), pair.raw_path.clone())).collect();
    let selection = Selection::of(&config, &paths)?;
    pairs.retain(|path, _| !selection.unselected.contains(path));
    warnings.extend(selection.warnings);
    if !selection.by_own_paths {
        config.targets = Targets::list(pairs.keys().cloned());
    }
    let embeddings = pairs.iter().filter(|(_, pair)| pair.embedding).map(|(path, _)| path.clone());
    config.metadata.embeddings.extend(embeddings);
    // Collected, the map has full nodes; filled one by one, nodes are half empty.
    let modules = pairs
        .into_iter()
        .map(|(path, pair)| {
            let update = low_rank(&config, &path, pair)?;
            Ok((path, update))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    let ties_head = config.weight_tying && !modules.keys().any(|path| is_tied_head(path));
    let adapter = Adapter::from_config(modules, config, warnings).with_base_tensors(base_tensors);
    Ok(if ties_head { adapter.with_pending_tied_head() } else { adapter })
}

/// The tensors by module, each one recognized.
fn pair_by_module(tensors: Vec<AdapterTensor>, warnings: &mut Vec<Warning>) -> Result<BTreeMap<String, Pair>> {
    let parsed = parse_keys(tensors.iter().map(|tensor| tensor.key.as_str()))?;
    warn_of_leniency(&parsed, warnings)?;
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for (key, tensor) in parsed.into_iter().zip(tensors) {
        let pair = match pairs.entry(key.module) {
            Entry::Vacant(entry) => entry.insert(Pair::default()),
            Entry::Occupied(entry) => {
                if let Some(first) = entry.get().factor(key.factor) {
                    let (name, first) = (key.factor.key(entry.key(), key.embedding), &first.key);
                    return Err(AdapterError::Tensors(format!(
                        "two tensors for `{name}`: `{first}` and another; remove one"
                    )));
                }
                entry.into_mut()
            }
        };
        pair.embedding |= key.embedding;
        pair.raw_path = key.raw_module;
        match key.factor {
            Factor::A => pair.a = Some(tensor),
            Factor::B => pair.b = Some(tensor),
        }
    }
    Ok(pairs)
}

fn parse_keys<'a>(keys: impl ExactSizeIterator<Item = &'a str>) -> Result<Vec<TensorKey>> {
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
fn warn_of_leniency(keys: &[TensorKey], warnings: &mut Vec<Warning>) -> Result<()> {
    let adapters: BTreeSet<_> = keys.iter().map(|key| &key.adapter).collect();
    let names: Vec<_> = adapters.iter().copied().flatten().collect();
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
        warnings.push(Warning::new(&key.module, text));
    }
    let corrected: BTreeSet<_> = keys.iter().flat_map(|key| &key.corrected).collect();
    let warning = |(prefix, meaning): &(String, &str)| {
        Warning::new(prefix, format!("{meaning}; the keys, with which PEFT would load no weights, were corrected"))
    };
    warnings.extend(corrected.into_iter().map(warning));
    Ok(())
}

/// The update of one module, its tensors of the rank that the configuration says.
fn low_rank(config: &PeftConfig, path: &str, pair: Pair) -> Result<LowRank> {
    let Pair { a, b, embedding, raw_path } = pair;
    let missing = |factor: Factor| {
        let name = factor.key(path, embedding);
        AdapterError::Tensors(format!("the tensor `{name}` is missing; the file is incomplete"))
    };
    let paths = [raw_path.as_str(), path];
    let a = a.ok_or_else(|| missing(Factor::A))?;
    let b = b.ok_or_else(|| missing(Factor::B))?;
    let (rank, scale) = (config.rank_under(&paths)?, config.scale_under(&paths)?);
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
    LowRank::new(a.matrix()?, b.matrix()?, scale).within(|| format!("module `{path}`"))
}
