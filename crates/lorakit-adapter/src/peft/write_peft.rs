//! Writes an adapter folder: adapter_config.json and adapter_model.safetensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use lorakit_format::atomic;
use lorakit_format::safetensors::{Dtype, View, write_file_unsynced};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::matrix::Matrix;
use crate::peft::adapter_files::{CONFIG_FILE, WEIGHTS_FILE};
use crate::peft::config_json::config_json;
use crate::peft::tensor_key::Factor;

impl Adapter {
    /// Writes the adapter as a folder that PEFT loads: f32 tensors, sorted keys, the same bytes for the same adapter. The
    /// folder appears whole or not at all and replaces an adapter folder that exists.
    ///
    /// # Errors
    /// If the adapter is empty or its scales are not finite, if `dir` is a folder that holds other things than an adapter,
    /// or it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        refuse_foreign_files(dir)?;
        self.check_writable()?;
        atomic::replace_folder(dir, |temporary| self.write_files(temporary))
    }

    /// Writes the two files into `dir` without syncing them.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        self.check_writable()?;
        let mut tensors = Vec::with_capacity(2 * self.modules().len());
        for (path, update) in self.modules() {
            let embedding = self.metadata().embeddings.contains(path);
            tensors.push((Factor::A.key(path, embedding), F32Tensor::of(update.a())));
            tensors.push((Factor::B.key(path, embedding), F32Tensor::of(update.b())));
        }
        // PEFT refuses files that do not name their framework.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write_file_unsynced(&dir.join(WEIGHTS_FILE), tensors, metadata)?;
        let config = dir.join(CONFIG_FILE);
        fs::write(&config, config_json(self)?).within(|| format!("{}: cannot be written", config.display()))
    }

    fn check_writable(&self) -> Result<()> {
        if self.modules().is_empty() {
            return Err(AdapterError::Tensors("an adapter without modules cannot be written".to_owned()));
        }
        for (path, update) in self.modules() {
            if !update.scale().is_finite() {
                return Err(AdapterError::Scale(update.scale())).within(|| format!("module `{path}`"));
            }
        }
        Ok(())
    }
}

/// A matrix as an f32 tensor of a safetensors file.
struct F32Tensor<'a> {
    matrix: &'a Matrix,
    shape: [usize; 2],
}

impl<'a> F32Tensor<'a> {
    fn of(matrix: &'a Matrix) -> Self {
        Self { matrix, shape: [matrix.rows(), matrix.cols()] }
    }
}

impl View for F32Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.matrix.values().iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.shape[0] * self.shape[1] * size_of::<f32>()
    }
}

/// Refuses to replace a folder that holds anything but an adapter: it would be lost.
fn refuse_foreign_files(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let place = dir.display();
    for entry in fs::read_dir(dir).within(|| format!("{place}: expected a folder"))? {
        let name = entry?.file_name();
        if name != CONFIG_FILE && name != WEIGHTS_FILE {
            return Err(AdapterError::AdapterFolder(format!(
                "{place}: the folder to be replaced also holds {}; choose another folder, or empty this one",
                name.display()
            )));
        }
    }
    Ok(())
}
