//! A base written as a Hugging Face model folder's `model.safetensors`.

use crate::base::Base;
use anyhow::{Result, ensure};
use std::collections::HashMap;

impl Base {
    /// The weights of a base that was opened to be trained, as the bytes of `model.safetensors`.
    pub fn trained_safetensors(&self) -> Result<Vec<u8>> {
        ensure!(!self.variables().is_empty(), "the base was not opened to be trained");
        let mut tensors: Vec<_> =
            self.variables().iter().map(|(name, variable)| (name.as_str(), variable.as_tensor())).collect();
        tensors.sort_by_key(|(name, _)| *name);
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        Ok(safetensors::serialize(tensors, Some(metadata))?)
    }
}
