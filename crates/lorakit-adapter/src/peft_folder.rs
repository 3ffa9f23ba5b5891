//! An adapter's folder as PEFT lays it out: adapter_config.json and adapter_model.safetensors.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::adapter::Adapter;
use crate::assembly::assemble;
use crate::matrix::Matrix;
use crate::peft_config::PeftConfig;
use crate::peft_json::config_json;
use crate::tensor_key::Half;
use crate::weights_file::{StoredTensor, read_tensors};
use lorakit_format::atomic;

/// The description of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The weights of an adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The name under which PEFT looks for the weights where there is no safetensors file.
pub(crate) const PICKLE_FILE: &str = "adapter_model.bin";

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
            .and_then(|tensors| assemble(config, tensors))
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
        assemble(config, tensors.collect())
    }

    /// Writes the adapter as a folder that PEFT loads: f32 tensors, sorted keys, the same bytes for
    /// the same adapter. The folder appears whole or not at all; an adapter's folder that is there
    /// already is replaced.
    ///
    /// # Errors
    /// If the adapter is empty or its scales are not finite, if `dir` is a folder that holds other
    /// things than an adapter, or cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        refuse_foreign_files(dir)?;
        self.ensure_writable()?;
        atomic::replace_folder(dir, |temporary| self.write_files(temporary))
    }

    /// Writes the two files into `dir`, which exists.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        self.ensure_writable()?;
        atomic::write_file(&dir.join(WEIGHTS_FILE), &self.weights_bytes()?)?;
        Ok(atomic::write_file(&dir.join(CONFIG_FILE), config_json(self)?.as_bytes())?)
    }

    fn ensure_writable(&self) -> Result<()> {
        ensure!(!self.modules().is_empty(), "an adapter without modules cannot be written");
        for (path, update) in self.modules() {
            ensure!(update.scale().is_finite(), "module `{path}`: the scale is {}", update.scale());
        }
        Ok(())
    }

    /// The safetensors file of the adapter.
    fn weights_bytes(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::with_capacity(2 * self.modules().len());
        for (path, update) in self.modules() {
            tensors.push((Half::A.key(path), shape(update.a()), bytes(update.a())));
            tensors.push((Half::B.key(path), shape(update.b()), bytes(update.b())));
        }
        let views = tensors
            .iter()
            .map(|(key, shape, bytes)| Ok((key, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        // PEFT refuses files that do not say for which framework they are.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }
}

fn shape(matrix: &Matrix) -> [usize; 2] {
    [matrix.rows(), matrix.cols()]
}

fn bytes(matrix: &Matrix) -> Vec<u8> {
    matrix.values().iter().flat_map(|value| value.to_le_bytes()).collect()
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

/// Refuses to replace a folder that holds anything which is not an adapter's own: it would be lost.
fn refuse_foreign_files(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("{}: expected a folder", dir.display()))? {
        let name = entry?.file_name();
        ensure!(
            name == CONFIG_FILE || name == WEIGHTS_FILE,
            "{}: the folder to be replaced also holds {}; choose another folder, or empty this one",
            dir.display(),
            name.display()
        );
    }
    Ok(())
}
