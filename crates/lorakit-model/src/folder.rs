//! A base written as a Hugging Face model folder's `model.safetensors`.

use crate::base::Base;
use anyhow::{Result, ensure};
use std::collections::HashMap;
use std::path::Path;

impl Base {
    /// Writes the weights of a base that was opened to be trained as a `model.safetensors` in f32, tensor by tensor, so
    /// that no second copy of them stands in memory.
    ///
    /// # Errors
    /// If the base was not opened to be trained, or the file cannot be written.
    pub fn write_trained(&self, path: &Path) -> Result<()> {
        ensure!(!self.variables().is_empty(), "the base was not opened to be trained");
        let mut tensors: Vec<_> =
            self.variables().iter().map(|(name, variable)| (name.as_str(), variable.as_tensor())).collect();
        tensors.sort_by_key(|(name, _)| *name);
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        Ok(lorakit_format::safetensors::write_file(path, tensors, metadata)?)
    }
}
