//! An adapter's folder as PEFT lays it out: adapter_config.json and adapter_model.safetensors.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::adapter::Adapter;
use crate::matrix::Matrix;
use crate::peft::adapter_files::{CONFIG_FILE, WEIGHTS_FILE};
use crate::peft::config_json::config_json;
use crate::peft::tensor_key::Factor;
use lorakit_format::atomic;

impl Adapter {
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
            tensors.push((Factor::A.key(path), shape(update.a()), bytes(update.a())));
            tensors.push((Factor::B.key(path), shape(update.b()), bytes(update.b())));
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
