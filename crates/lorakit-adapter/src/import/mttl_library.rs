//! Libraries of mttl, the code of Towards Modular LLMs (<https://github.com/microsoft/mttl>), read as data.
//!
//! A library is one folder with `NAME.ckpt`, a state dict, and `NAME.meta`, a description of the expert, both files of
//! torch.save. Pairs are stored transposed, `MODULE.lora_a [in, r]` and `MODULE.lora_b [r, out]`, with the scale
//! `lora_alpha / lora_rank`. Tied A's are one parameter, of which `named_parameters()` lists the first name alone, and only
//! that one is stored.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within, pickle_error};
use crate::import::pickle::Pickle;
use crate::import::pickle_value::{Value, ValueId};
use crate::import::torch_file::{TorchFile, TorchTensor};
use crate::low_rank::LowRank;
use crate::matrix::Matrix;
use crate::name_list::quote_names;
use crate::peft::path_pattern::PathPattern;
use crate::peft::peft_config::AdapterMetadata;

const WEIGHTS: &str = "ckpt";
const META: &str = "meta";

/// An expert of an mttl library.
#[derive(Clone, Debug)]
pub struct MttlExpert {
    /// The adapter.
    pub adapter: Adapter,
    /// The names of the tasks that it was trained on, if they are known.
    pub tasks: Vec<String>,
    /// Whether the library marks it as deleted; its files remain nevertheless.
    pub deleted: bool,
}

/// The names of an mttl library's experts, sorted; none if `folder` is not such a library.
///
/// # Errors
/// If the folder cannot be read, or a name is not UTF-8.
pub fn mttl_experts(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).within_file(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != WEIGHTS) {
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| pickle_error(format!("{}: the name is not UTF-8", path.display())))?;
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

impl MttlExpert {
    /// Reads the expert `name` of the library in `folder`. Nothing in its files is executed.
    ///
    /// # Errors
    /// If a file is missing or damaged, the expert is not a plain LoRA, or a tensor does not fit. The error names the
    /// file and the tensor.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.{META}"));
        if !path.is_file() {
            let weights = folder.join(format!("{name}.{WEIGHTS}"));
            return Err(pickle_error(format!(
                "{}: no {name}.{META} is next to it; expected both, as mttl writes them",
                weights.display()
            )));
        }
        let meta = TorchFile::open(&path).and_then(|file| Meta::of(file.pickle())).within_file(&path)?;
        let path = folder.join(format!("{name}.{WEIGHTS}"));
        let adapter = state_dict(&path).and_then(|tensors| adapter(tensors, &meta)).within_file(&path)?;
        Ok(Self { adapter, tasks: meta.tasks, deleted: meta.deleted })
    }
}

/// The content of the `.meta`.
struct Meta {
    rank: f64,
    alpha: f64,
    /// The expression that the names of tied parameters match.
    tied: Option<PathPattern>,
    tasks: Vec<String>,
    base: Option<String>,
    deleted: bool,
}

impl Meta {
    fn of(pickle: &Pickle) -> Result<Self> {
        let root = pickle.root();
        // What the expert's own configuration does not say, the training's may.
        let configs = ["expert_config", "training_config"].map(|key| pickle.get(root, key));
        let setting = |key: &str| configs.iter().flatten().find_map(|config| pickle.get(*config, key));
        let number = |key: &str| -> Result<f64> {
            let found = setting(key)
                .ok_or_else(|| pickle_error(format!("no `{key}` in expert_config; expected the expert of a LoRA")))?;
            let number = pickle.number(found).filter(|number| number.is_finite() && *number > 0.0);
            number.ok_or_else(|| {
                pickle_error(format!("`{key}` is {}; expected a number above zero", pickle.value(found)))
            })
        };
        let text = |id: Option<ValueId>| id.and_then(|id| pickle.text(id)).filter(|text| !text.is_empty());
        let tasks = text(pickle.get(root, "expert_task_name")).into_iter().flat_map(|tasks| tasks.split(','));
        Ok(Self {
            rank: number("lora_rank")?,
            alpha: number("lora_alpha")?,
            tied: text(setting("tie_params"))
                .map(|tied| PathPattern::anywhere(tied).within(|| "tie_params".to_owned()))
                .transpose()?,
            tasks: tasks.map(|task| task.trim().to_owned()).collect(),
            base: text(pickle.get(root, "expert_model")).or(text(setting("model"))).map(str::to_owned),
            deleted: pickle.get(root, "expert_deleted").is_some_and(|id| *pickle.value(id) == Value::Bool(true)),
        })
    }
}

/// The tensors of a state dict, plain or as Lightning wraps it.
fn state_dict(path: &Path) -> Result<BTreeMap<String, TorchTensor>> {
    let mut file = TorchFile::open(path)?;
    let root = file.pickle().root();
    let id = file.pickle().get(root, "state_dict").unwrap_or(root);
    Ok(file.tensors(id)?.into_iter().collect())
}

/// The adapter of transposed pairs.
fn adapter(mut tensors: BTreeMap<String, TorchTensor>, meta: &Meta) -> Result<Adapter> {
    let foreign = tensors.keys().find(|key| !key.ends_with(".lora_a") && !key.ends_with(".lora_b"));
    if let Some(key) = foreign {
        return Err(wrong(format!(
            "tensor `{key}` does not belong to a LoRA; expected only MODULE.lora_a and MODULE.lora_b"
        )));
    }
    let paths: Vec<String> = tensors.keys().filter_map(|key| Some(key.strip_suffix(".lora_b")?.to_owned())).collect();
    if paths.is_empty() {
        return Err(wrong("there is no tensor MODULE.lora_b".to_owned()));
    }
    let a: BTreeMap<String, Matrix> = paths
        .iter()
        .filter_map(|path| Some((path, tensors.remove(&format!("{path}.lora_a"))?)))
        .map(|(path, tensor)| Ok((path.clone(), transpose(tensor).within(|| format!("tensor `{path}.lora_a`"))?)))
        .collect::<Result<_>>()?;
    if let Some(key) = tensors.keys().find(|key| key.ends_with(".lora_a")) {
        return Err(wrong(format!("tensor `{key}` has no lora_b; the file is incomplete")));
    }
    let mut modules = BTreeMap::new();
    for path in paths {
        let key = format!("{path}.lora_b");
        let Some(tensor) = tensors.remove(&key) else { continue };
        let b = transpose(tensor).within(|| format!("tensor `{key}`"))?;
        let a = match a.get(&path) {
            Some(own) => own,
            None => tied(&path, &a, meta)?,
        };
        if a.rows() as f64 != meta.rank {
            let (found, expected) = (a.rows(), meta.rank);
            return Err(wrong(format!("module `{path}` has rank {found}, and lora_rank in the {META} is {expected}")));
        }
        let update = LowRank::new(a.clone(), b, meta.alpha / meta.rank).within(|| format!("module `{path}`"))?;
        modules.insert(path, update);
    }
    let metadata = AdapterMetadata { base_model: meta.base.clone(), ..AdapterMetadata::default() };
    Ok(Adapter::new(modules).with_metadata(metadata))
}

/// The A that the module shares with another, where `tie_params` ties them: as in mttl, their names match it after the same
/// text.
fn tied<'a>(path: &str, a: &'a BTreeMap<String, Matrix>, meta: &Meta) -> Result<&'a Matrix> {
    let missing = || format!("the tensor `{path}.lora_a` is missing; the file is incomplete");
    let Some(pattern) = &meta.tied else { return Err(wrong(missing())) };
    let parent_of = |path: &str| -> Result<Option<String>> {
        let name = format!("{path}.lora_a");
        let found = pattern.find(&name)?;
        // mttl refuses an expression that matches modules and not their parameters.
        Ok(found.filter(|found| found.end == name.len()).map(|found| name[..found.start].to_owned()))
    };
    let Some(parent) = parent_of(path)? else {
        let (missing, pattern) = (missing(), pattern.source());
        return Err(wrong(format!("{missing}: it is not tied, as tie_params `{pattern}` does not match it")));
    };
    let mut sources = Vec::new();
    for (other, a) in a {
        if parent_of(other)?.as_ref() == Some(&parent) {
            sources.push((other, a));
        }
    }
    match sources[..] {
        [(_, one)] => Ok(one),
        [] => Err(wrong(missing())),
        _ => {
            let names: Vec<&String> = sources.iter().map(|(path, _)| *path).collect();
            Err(wrong(format!("{}: it is tied, and several A's are tied to it: {}", missing(), quote_names(&names))))
        }
    }
}

/// A stored matrix in PEFT's orientation.
fn transpose((shape, values): TorchTensor) -> Result<Matrix> {
    let &[rows, columns] = shape.as_slice() else {
        return Err(wrong(format!("found shape {shape:?}; expected two dimensions")));
    };
    // No values fill [0, 2^62] as well, and its columns would be iterated one by one.
    if rows == 0 || columns == 0 {
        return Err(wrong(format!("found shape {shape:?}; expected two dimensions above zero")));
    }
    Ok(Matrix::new(rows, columns, values)?.transposed())
}

fn wrong(reason: String) -> AdapterError {
    AdapterError::Tensors(reason)
}
