//! Libraries of mttl, the code of Towards Modular LLMs (<https://github.com/microsoft/mttl>), read as data.
//!
//! A library is one folder with `NAME.ckpt`, a state dict, and `NAME.meta`, what is known of the expert, both files of
//! torch.save. Pairs are stored transposed, `MODULE.lora_a [in, r]` and `MODULE.lora_b [r, out]`, under the scale
//! `lora_alpha / lora_rank`; A's that are tied are stored once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::adapter::Adapter;
use crate::import::pickle::Pickle;
use crate::import::pickle_value::{Value, ValueId};
use crate::import::torch_file::{Dense, TorchFile};
use crate::low_rank::LowRank;
use crate::matrix::Matrix;
use crate::peft::peft_config::AdapterMetadata;

const WEIGHTS: &str = "ckpt";
const ABOUT: &str = "meta";

/// An expert of an mttl library.
#[derive(Clone, Debug)]
pub struct MttlExpert {
    /// The adapter.
    pub adapter: Adapter,
    /// The names of the tasks that it was trained on, as far as they are known.
    pub tasks: Vec<String>,
    /// Whether the library calls it deleted; its files stay there nevertheless.
    pub deleted: bool,
}

/// The names of an mttl library's experts, sorted; none where `folder` is no such library.
///
/// # Errors
/// If the folder cannot be read, or an expert lacks one of its two files.
pub fn mttl_experts(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != WEIGHTS) {
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{}: a name that is no UTF-8", path.display()))?;
        ensure!(
            path.with_extension(ABOUT).is_file(),
            "{}: there is no {name}.{ABOUT} beside it; expected both, as mttl writes them",
            path.display()
        );
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

impl MttlExpert {
    /// Reads the expert `name` of the library in `folder`. Nothing in its files is executed.
    ///
    /// # Errors
    /// If a file is missing or damaged, the expert is no plain LoRA, or a tensor does not fit. The error names the
    /// file and the tensor.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.{ABOUT}"));
        let about = TorchFile::open(&path).and_then(|file| About::of(file.pickle()));
        let about = about.with_context(|| path.display().to_string())?;
        let path = folder.join(format!("{name}.{WEIGHTS}"));
        let adapter = weights(&path).and_then(|tensors| adapter(tensors, &about));
        let adapter = adapter.with_context(|| path.display().to_string())?;
        Ok(Self { adapter, tasks: about.tasks, deleted: about.deleted })
    }
}

/// What the `.meta` tells.
struct About {
    rank: f64,
    alpha: f64,
    tied: bool,
    tasks: Vec<String>,
    base: Option<String>,
    deleted: bool,
}

impl About {
    fn of(pickle: &Pickle) -> Result<Self> {
        let root = pickle.root();
        // Where the expert's own configuration does not say, the training's does.
        let places = ["expert_config", "training_config"].map(|key| pickle.get(root, key));
        let within = |key: &str| places.iter().flatten().find_map(|place| pickle.get(*place, key));
        let number = |key: &str| -> Result<f64> {
            let found =
                within(key).with_context(|| format!("no `{key}` in expert_config; expected the expert of a LoRA"))?;
            let number = pickle.number(found).filter(|number| number.is_finite() && *number > 0.0);
            number.with_context(|| format!("`{key}` is {}; expected a number above zero", pickle.value(found)))
        };
        let text = |place: Option<ValueId>| place.and_then(|place| pickle.text(place)).filter(|text| !text.is_empty());
        let tasks = text(pickle.get(root, "expert_task_name")).into_iter().flat_map(|tasks| tasks.split(','));
        Ok(Self {
            rank: number("lora_rank")?,
            alpha: number("lora_alpha")?,
            tied: text(within("tie_params")).is_some(),
            tasks: tasks.map(|task| task.trim().to_owned()).collect(),
            base: text(pickle.get(root, "expert_model")).or(text(within("model"))).map(str::to_owned),
            deleted: pickle.get(root, "expert_deleted").is_some_and(|place| *pickle.value(place) == Value::Bool(true)),
        })
    }
}

/// The tensors of a state dict, bare or as Lightning wraps it.
fn weights(path: &Path) -> Result<BTreeMap<String, Dense>> {
    let mut file = TorchFile::open(path)?;
    let root = file.pickle().root();
    let place = file.pickle().get(root, "state_dict").unwrap_or(root);
    Ok(file.tensors(place)?.into_iter().collect())
}

/// The adapter of transposed pairs.
fn adapter(mut tensors: BTreeMap<String, Dense>, about: &About) -> Result<Adapter> {
    let foreign = tensors.keys().find(|key| !key.ends_with(".lora_a") && !key.ends_with(".lora_b"));
    if let Some(key) = foreign {
        bail!("tensor `{key}` is no LoRA's; expected MODULE.lora_a and MODULE.lora_b alone");
    }
    let paths: Vec<String> = tensors.keys().filter_map(|key| Some(key.strip_suffix(".lora_b")?.to_owned())).collect();
    ensure!(!paths.is_empty(), "no tensor of the form MODULE.lora_b is there");
    let a: BTreeMap<String, Matrix> = paths
        .iter()
        .filter_map(|path| Some((path, tensors.remove(&format!("{path}.lora_a"))?)))
        .map(|(path, tensor)| {
            Ok((path.clone(), transposed(tensor).with_context(|| format!("tensor `{path}.lora_a`"))?))
        })
        .collect::<Result<_>>()?;
    if let Some(key) = tensors.keys().find(|key| key.ends_with(".lora_a")) {
        bail!("tensor `{key}` has no lora_b; the file is not whole");
    }
    let mut modules = BTreeMap::new();
    for path in paths {
        let key = format!("{path}.lora_b");
        let Some(tensor) = tensors.remove(&key) else { continue };
        let b = transposed(tensor).with_context(|| format!("tensor `{key}`"))?;
        let a = match a.get(&path) {
            Some(own) => own,
            None => tied(&path, &a, about)?,
        };
        ensure!(
            a.rows() as f64 == about.rank,
            "module `{path}` has rank {}, and lora_rank in the {ABOUT} is {}",
            a.rows(),
            about.rank
        );
        let update =
            LowRank::new(a.clone(), b, about.alpha / about.rank).with_context(|| format!("module `{path}`"))?;
        modules.insert(path, update);
    }
    Ok(Adapter::new(modules)
        .with_metadata(AdapterMetadata { base_model: about.base.clone(), ..AdapterMetadata::default() }))
}

/// The A of a sibling, where A's are tied within their parent module.
fn tied<'a>(path: &str, a: &'a BTreeMap<String, Matrix>, about: &About) -> Result<&'a Matrix> {
    let missing = || format!("the tensor `{path}.lora_a` is missing; the file is not whole");
    ensure!(about.tied, "{}", missing());
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    let siblings = a.iter().filter(|(other, _)| other.rsplit_once('.').map_or("", |(parent, _)| parent) == parent);
    let siblings: Vec<&Matrix> = siblings.map(|(_, matrix)| matrix).collect();
    match siblings[..] {
        [one] => Ok(one),
        [] => bail!("{}", missing()),
        _ => bail!("{}: it is tied, and several of its siblings have one", missing()),
    }
}

/// A stored matrix, turned as PEFT has it.
fn transposed((shape, values): Dense) -> Result<Matrix> {
    let &[rows, columns] = shape.as_slice() else { bail!("found shape {shape:?}; expected two dimensions") };
    // No values fill [0, 2^62] too, and its columns would be gone through one by one.
    ensure!(rows > 0 && columns > 0, "found shape {shape:?}; expected two dimensions above zero");
    let turned = (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect();
    Matrix::new(columns, rows, turned)
}
