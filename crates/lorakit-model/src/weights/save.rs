//! Saving a trained base's weights as the `model.safetensors` of a Hugging Face folder.

use crate::base::Base;
use crate::error::{ModelError, Result};
use candle_core::Tensor;
use lorakit_format::safetensors::{Dtype, StoredTensor, View, write_file};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// A tensor of the file.
enum SavedTensor<'a> {
    Trained(&'a Tensor),
    Stored(StoredTensor),
}

impl View for SavedTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Trained(tensor) => View::dtype(tensor),
            Self::Stored(tensor) => tensor.dtype(),
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Trained(tensor) => View::shape(tensor),
            Self::Stored(tensor) => tensor.shape(),
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Trained(tensor) => View::data(tensor),
            Self::Stored(tensor) => tensor.data(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Trained(tensor) => View::data_len(tensor),
            Self::Stored(tensor) => tensor.data_len(),
        }
    }
}

impl Base {
    /// Writes the weights of a base that was opened to be trained as a `model.safetensors` in f32, with `others` as they
    /// are, tensor by tensor, so that no second copy of them is in memory.
    ///
    /// # Errors
    /// If the base was not opened to be trained, or the file cannot be written.
    pub fn write_trained(&self, path: &Path, others: Vec<(String, StoredTensor)>) -> Result<()> {
        if self.variables().is_empty() {
            return Err(ModelError::NotTrainable);
        }
        let trained =
            self.variables().iter().map(|(name, variable)| (name.clone(), SavedTensor::Trained(variable.as_tensor())));
        let others = others.into_iter().map(|(name, tensor)| (name, SavedTensor::Stored(tensor)));
        let mut tensors: Vec<_> = trained.chain(others).collect();
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        // transformers refuses a file that does not say which framework it is of.
        Ok(write_file(path, tensors, HashMap::from([("format".to_owned(), "pt".to_owned())]))?)
    }
}
