//! Adapters that change some weights otherwise than by A and B: by DoRA (<https://arxiv.org/abs/2402.09353>), by whole
//! copies of modules (`modules_to_save`), or by new rows of single tokens (`trainable_token_indices`). They are no adapters
//! here until they are converted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::adapter::Adapter;
use crate::base_module::BaseModule;
use crate::error::{AdapterError, Result, Within};
use crate::image_encoder::{ImageTensors, is_of_images};
use crate::import::token_rows::TokenRows;
use crate::low_rank::LowRank;
use crate::matrix::Matrix;
use crate::name_list::quote_names;
use crate::peft::adapter_files::CONFIG_FILE;
use crate::peft::adapter_tensor::AdapterTensor;
use crate::peft::base_tensors::Biases;
use crate::peft::peft_config::{BeyondLora, PeftConfig};
use crate::peft::read_peft::from_parts;
use crate::peft::target_modules::ends_with_name;
use crate::peft::weight_files::PeftWeightFiles;
use crate::peft::wrapper_prefix::Unwrapped;
use crate::text_model_paths::TextModelRenaming;

/// The mark of DoRA's magnitudes in a tensor's name.
const MAGNITUDE: &str = ".lora_magnitude_vector";

/// The mark of a copied module in the names of older versions of PEFT.
const COPY: &str = ".modules_to_save";

/// A PEFT adapter with its changes of full rank.
#[derive(Clone, Debug)]
pub struct DenseAdapter {
    low_rank: Adapter,
    magnitudes: BTreeMap<String, Matrix>,
    copies: BTreeMap<String, Matrix>,
    token_rows: BTreeMap<String, TokenRows>,
    saved_modules: Vec<String>,
    /// Those of `saved_modules` that no tensor of the file is for.
    uncopied: Vec<String>,
}

impl DenseAdapter {
    /// Reads a PEFT folder, in which DoRA, whole copies of modules and rows of single tokens are allowed besides a LoRA.
    ///
    /// # Errors
    /// As [`Adapter::read`], for anything else; if a module lacks the magnitude that `use_dora` gives it.
    pub fn read(dir: &Path) -> Result<Self> {
        let config = PeftConfig::read_dense(&dir.join(CONFIG_FILE))?;
        let files = PeftWeightFiles::find(dir)?;
        Self::of(config, files.tensors()?).within_file(files.place(dir))
    }

    fn of(config: PeftConfig, tensors: Vec<AdapterTensor>) -> Result<Self> {
        let (mut rest, mut magnitudes, mut copies) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let (mut biases, mut copied) = (BTreeMap::new(), BTreeSet::new());
        let mut token_rows = BTreeMap::new();
        let BeyondLora { dora, saved_modules, token_indices } = config.beyond_lora.clone();
        for tensor in tensors {
            let name = Unwrapped::of(&tensor.key);
            copied.extend(saved_modules.iter().filter(|saved| is_copy_of(&name, saved)).cloned());
            let path = &name.path;
            if let Some((module, _)) = path.rsplit_once(MAGNITUDE) {
                magnitudes.insert(module.to_owned(), tensor.rows()?);
            } else if let Some(module) = TokenRows::module_of(path) {
                token_rows.insert(module.to_owned(), TokenRows::of(module, tensor, &token_indices)?);
            } else if is_of_images(path) && !path.contains(".lora_") {
                // A whole tower may be saved, with tensors of all kinds.
                copies.insert(name.path, tensor.rows()?);
            } else if let Some(module) = copied_module(&name, ".weight", &config) {
                ensure_linear(&module, &tensor)?;
                copies.insert(module, tensor.matrix()?);
            } else if let Some(module) = copied_module(&name, ".bias", &config) {
                // It has to be the base's: no low rank holds another.
                biases.insert(format!("{module}.bias"), tensor.rows()?);
            } else {
                rest.push(tensor);
            }
        }
        if token_rows.is_empty() && !token_indices.is_empty() {
            return Err(AdapterError::Tensors(
                "trainable_token_indices is set, and the file holds no trainable_tokens_delta; it is incomplete"
                    .to_owned(),
            ));
        }
        let low_rank = from_parts(config, rest, Biases::OfBase)?.with_base_tensors(biases);
        check_magnitudes(&low_rank, &magnitudes, dora)?;
        if let Some(both) = copies.keys().find(|path| low_rank.modules().contains_key(*path)) {
            return Err(AdapterError::Tensors(format!(
                "module `{both}` has a LoRA and a whole copy (modules_to_save); expected one of them"
            )));
        }
        let uncopied = saved_modules.iter().filter(|saved| !copied.contains(*saved)).cloned().collect();
        Ok(Self { low_rank, magnitudes, copies, token_rows, saved_modules, uncopied })
    }

    /// The LoRA: the whole adapter where nothing has full rank.
    pub fn low_rank(&self) -> &Adapter {
        &self.low_rank
    }

    /// DoRA's magnitudes by module, `[1, out]`: the module's weight becomes `m (W + s B A) / |W + s B A|`, where the norm is
    /// that of each row.
    pub fn magnitudes(&self) -> &BTreeMap<String, Matrix> {
        &self.magnitudes
    }

    /// The weights that replace the base's, by module, as stored: `[out, in]`, or `[vocabulary, out]` of an embedding. Those
    /// of an image encoder may be by tensor.
    pub fn copies(&self) -> &BTreeMap<String, Matrix> {
        &self.copies
    }

    /// The rows that replace the base's, by embedding or head.
    pub fn token_rows(&self) -> &BTreeMap<String, TokenRows> {
        &self.token_rows
    }

    /// The LoRA with `updates` in place of what has full rank, of which some are of `embeddings`.
    pub fn with_updates(&self, updates: BTreeMap<String, LowRank>, embeddings: BTreeSet<String>) -> Adapter {
        let mut modules = self.low_rank.modules().clone();
        modules.extend(updates);
        let mut metadata = self.low_rank.metadata().clone();
        metadata.embeddings.extend(embeddings);
        // The updates have a scale of their own.
        metadata.rslora = false;
        self.low_rank.clone().with_modules(modules).with_metadata(metadata)
    }

    /// The same adapter with the module paths of a base whose text model is within a multimodal one or alone, as
    /// [`Adapter::with_modules_of`] renames them.
    pub fn with_text_model_paths_of(self, base: &[BaseModule]) -> Self {
        let paths = self.low_rank.modules().keys().chain(self.copies.keys()).chain(self.token_rows.keys());
        let Some(renaming) = TextModelRenaming::of(paths, base) else { return self };
        let renamed = |matrices: BTreeMap<String, Matrix>| {
            matrices.into_iter().map(|(path, values)| (renaming.path(&path), values)).collect()
        };
        let token_rows = self.token_rows.into_iter().map(|(path, rows)| (renaming.path(&path), rows)).collect();
        Self {
            low_rank: self.low_rank.with_text_model_paths(&renaming),
            magnitudes: renamed(self.magnitudes),
            copies: renamed(self.copies),
            token_rows,
            ..self
        }
    }

    /// Checks that the file holds a copy of each module of a base that `modules_to_save` names: of its modules that adapters
    /// can change, and of others, such as norms, by the names of its tensors. A name that the base does not have is ignored,
    /// as in PEFT.
    ///
    /// # Errors
    /// If a copy is missing, with which PEFT does not load the adapter either.
    pub fn ensure_copies<'a>(&self, base: &[BaseModule], tensors: impl Iterator<Item = &'a str>) -> Result<()> {
        let names = |path: &str, saved: &[String]| saved.iter().any(|name| names_module(path, name));
        let is_missing = |path: &&str| {
            let copied = self.copies.contains_key(*path) || self.low_rank.modules().contains_key(*path);
            !copied && !is_of_images(path) && names(path, &self.saved_modules)
        };
        let mut missing: BTreeSet<&str> = base.iter().map(|module| module.path.as_str()).filter(is_missing).collect();
        let module_of = |tensor: &'a str| tensor.strip_suffix(".weight").or_else(|| tensor.strip_suffix(".bias"));
        let others = tensors.filter_map(module_of).filter(|path| !is_of_images(path) && names(path, &self.uncopied));
        missing.extend(others);
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<&str> = missing.into_iter().collect();
        Err(AdapterError::Tensors(format!(
            "modules_to_save names {}, of which the file holds no copy; the file is incomplete, and PEFT does not load it \
             either",
            quote_names(&missing)
        )))
    }

    /// The same adapter without what it changes in an image encoder, as [`Adapter::without_image_encoder`].
    ///
    /// # Errors
    /// If nothing is left.
    pub fn without_image_encoder(mut self) -> Result<Self> {
        let found = self.image_tensors();
        if found.is_empty() {
            return Ok(self);
        }
        let warning = found.left_out()?;
        self.magnitudes.retain(|path, _| !is_of_images(path));
        self.copies.retain(|path, _| !is_of_images(path));
        Ok(Self { low_rank: self.low_rank.without_modules(is_of_images).with_warning(warning), ..self })
    }

    /// Refuses an adapter that changes an image encoder.
    ///
    /// # Errors
    /// If it does; the error says how much of it, and what to do.
    pub fn ensure_no_image_encoder(&self) -> Result<()> {
        let found = self.image_tensors();
        if found.is_empty() { Ok(()) } else { Err(found.refusal()) }
    }

    fn image_tensors(&self) -> ImageTensors<'_> {
        let low_rank = self.low_rank.modules().keys().map(|path| (path, 2));
        ImageTensors::among(low_rank.chain(self.magnitudes.keys().chain(self.copies.keys()).map(|path| (path, 1))))
    }

    /// Whether its configuration names modules of which the file should hold whole copies.
    pub fn names_copies(&self) -> bool {
        !self.saved_modules.is_empty()
    }

    /// Whether it is a LoRA and nothing else.
    pub fn is_low_rank(&self) -> bool {
        self.magnitudes.is_empty() && self.copies.is_empty() && self.token_rows.is_empty()
    }
}

/// Whether the tensor of this name belongs to a copy of a module that `saved` names.
fn is_copy_of(name: &Unwrapped, saved: &str) -> bool {
    let module = |path: &str| {
        let (module, _) = path.rsplit_once(COPY).or_else(|| path.rsplit_once('.'))?;
        Some(names_module(module, saved))
    };
    !name.path.contains(".lora_") && [&name.path, &name.raw].into_iter().any(|path| module(path) == Some(true))
}

/// Whether an entry of `modules_to_save` names the module at `path` or one that it is in. As in PEFT, any end of a path does:
/// `norm` names `input_layernorm`.
fn names_module(path: &str, saved: &str) -> bool {
    let above = path.match_indices('.').map(|(at, _)| &path[..at]);
    std::iter::once(path).chain(above).any(|path| path.ends_with(saved))
}

/// The module of whose copy the tensor of this name is the weight or the bias.
fn copied_module(name: &Unwrapped, suffix: &str, config: &PeftConfig) -> Option<String> {
    let module = name.path.strip_suffix(suffix)?;
    if let Some((module, _)) = module.rsplit_once(COPY) {
        return Some(module.to_owned());
    }
    let saved_modules = &config.beyond_lora.saved_modules;
    // The configuration may name modules by the paths of an earlier transformers, as the file does.
    let written = name.raw.strip_suffix(suffix).unwrap_or(module);
    // The head is saved with an embedding that it is tied to.
    let tied = config.weight_tying && !saved_modules.is_empty() && ends_with_name(module, "lm_head");
    let is_saved = |name: &String| names_module(module, name) || names_module(written, name);
    let saved = tied || saved_modules.iter().any(is_saved);
    (saved && !module.contains(".lora_") && !module.ends_with(".base_layer")).then(|| module.to_owned())
}

/// Refuses the copy of a module that is not linear.
fn ensure_linear(module: &str, copy: &AdapterTensor) -> Result<()> {
    match copy.shape() {
        [_, _] => Ok(()),
        shape => Err(AdapterError::Tensors(format!(
            "the copy of `{module}` (modules_to_save) has the shape {shape:?}: only copies of linear modules and embeddings \
             become low-rank, and those of norms and others do not; train without them in modules_to_save"
        ))),
    }
}

/// Checks that each magnitude has its LoRA, of as many outputs, and each LoRA its magnitude if there are any.
fn check_magnitudes(low_rank: &Adapter, magnitudes: &BTreeMap<String, Matrix>, dora: bool) -> Result<()> {
    let fits = |(path, values): &(&String, &Matrix)| {
        low_rank.modules().get(*path).is_some_and(|update| (values.rows(), values.cols()) == (1, update.output()))
    };
    let wrong: Vec<&String> = magnitudes.iter().filter(|entry| !fits(entry)).map(|(path, _)| path).collect();
    if !wrong.is_empty() {
        return Err(AdapterError::Tensors(format!(
            "lora_magnitude_vector without a LoRA of as many outputs for {}; the file is incomplete",
            quote_names(&wrong)
        )));
    }
    if !dora && !magnitudes.is_empty() {
        return Err(AdapterError::Tensors(
            "the file holds DoRA's magnitudes (lora_magnitude_vector), and adapter_config.json does not set use_dora, so that \
             PEFT ignores them; correct one of the two"
                .to_owned(),
        ));
    }
    let missing: Vec<&String> = low_rank.modules().keys().filter(|path| !magnitudes.contains_key(*path)).collect();
    if dora && !missing.is_empty() {
        return Err(AdapterError::Tensors(format!(
            "use_dora is true, and there is no lora_magnitude_vector for {}; the file is incomplete",
            quote_names(&missing)
        )));
    }
    Ok(())
}
