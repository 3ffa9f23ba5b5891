//! Saving a trained base's weights as the `model.safetensors` of a Hugging Face folder.

use crate::base::Base;
use crate::error::{ModelError, Result};
use lorakit_format::safetensors::write_file;
use std::collections::HashMap;
use std::path::Path;

impl Base {
    /// Writes the weights of a base that was opened to be trained as a `model.safetensors` in f32, tensor by tensor, so
    /// that no second copy of them is in memory.
    ///
    /// # Errors
    /// If the base was not opened to be trained, or the file cannot be written.
    pub fn write_trained(&self, path: &Path) -> Result<()> {
        if self.variables().is_empty() {
            return Err(ModelError::NotTrainable);
        }
        let mut tensors: Vec<_> =
            self.variables().iter().map(|(name, variable)| (name.as_str(), variable.as_tensor())).collect();
        tensors.sort_by_key(|(name, _)| *name);
        // transformers refuses a file that does not say which framework it is of.
        Ok(write_file(path, tensors, HashMap::from([("format".to_owned(), "pt".to_owned())]))?)
    }
}
