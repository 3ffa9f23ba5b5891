//! A tensor of a checkpoint as its file stores it.

use crate::error::{ModelError, Result};
use crate::weights::bitsandbytes::FourBitMatrix;
use crate::weights::gguf_weights::GgufTensorRef;
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::storage_dtype::StorageDtype;
use lorakit_format::safetensors::{Dtype, SafetensorsFile, TensorEntry};
use std::error::Error;
use std::path::Path;

/// A tensor of a checkpoint as its file stores it.
#[derive(Clone, Copy)]
pub(crate) struct StoredWeight<'a> {
    /// Its name, as transformers 5 has it.
    pub(crate) name: &'a str,
    pub(crate) format: WeightFormat<'a>,
}

/// The kinds of files that hold tensors.
#[derive(Clone, Copy)]
pub(crate) enum WeightFormat<'a> {
    Safetensors(&'a SafetensorsFile, &'a TensorEntry),
    /// The 4 bits of bitsandbytes, in several tensors of safetensors files.
    FourBit(&'a SafetensorsFile, &'a FourBitMatrix),
    Gguf(GgufTensorRef<'a>),
}

impl<'a> StoredWeight<'a> {
    /// Its dimensions.
    pub(crate) fn shape(&self) -> &'a [usize] {
        match self.format {
            WeightFormat::Safetensors(_, entry) => &entry.shape,
            WeightFormat::FourBit(_, matrix) => matrix.shape(),
            WeightFormat::Gguf(tensor) => &tensor.entry.shape,
        }
    }

    /// Its rows and columns.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub(crate) fn dimensions(&self) -> Result<(usize, usize)> {
        match *self.shape() {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(self.error(format!("has shape {:?}; expected a matrix", self.shape()))),
        }
    }

    /// Number of its values.
    pub(crate) fn values(&self) -> usize {
        self.shape().iter().product()
    }

    /// Its size in the file.
    pub(crate) fn bytes(&self) -> usize {
        match self.format {
            WeightFormat::Safetensors(_, entry) => entry.bytes.len(),
            WeightFormat::FourBit(_, matrix) => matrix.bytes(),
            WeightFormat::Gguf(tensor) => tensor.entry.bytes.len(),
        }
    }

    /// Its values, a vector as one row; they stay in the file.
    ///
    /// # Errors
    /// If its type is not supported.
    pub(crate) fn matrix(&self) -> Result<MmapMatrix> {
        let (rows, columns) = if let [rows, columns] = *self.shape() { (rows, columns) } else { (1, self.values()) };
        match self.format {
            WeightFormat::Safetensors(file, entry) => {
                MmapMatrix::new(file.bytes().clone(), entry.bytes.clone(), self.storage_dtype()?, rows, columns)
            }
            WeightFormat::FourBit(_, matrix) => Ok(MmapMatrix::of_four_bits(matrix.clone())),
            WeightFormat::Gguf(tensor) => tensor.matrix(rows, columns),
        }
    }

    /// The type of its values: f32 if they are quantized.
    ///
    /// # Errors
    /// If its type is not supported.
    pub(crate) fn storage_dtype(&self) -> Result<StorageDtype> {
        match self.format {
            WeightFormat::Safetensors(_, entry) => StorageDtype::from_safetensors(entry.dtype)
                .ok_or_else(|| self.error(format!("is {:?}; lorakit reads F32, F16 and BF16", entry.dtype))),
            WeightFormat::FourBit(_, matrix) => Ok(matrix.dtype()),
            WeightFormat::Gguf(tensor) => Ok(tensor.storage_dtype()),
        }
    }

    /// The name of the type of its values in its file.
    pub(crate) fn type_name(&self) -> String {
        match self.format {
            WeightFormat::Safetensors(_, entry) => format!("{:?}", entry.dtype),
            WeightFormat::FourBit(_, matrix) => matrix.type_name().to_owned(),
            WeightFormat::Gguf(tensor) => tensor.entry.dtype.name.to_owned(),
        }
    }

    /// The type of its values in a safetensors file that is written.
    ///
    /// # Errors
    /// If its type is not supported.
    pub(crate) fn written_dtype(&self) -> Result<Dtype> {
        match self.format {
            WeightFormat::Safetensors(_, entry) => Ok(entry.dtype),
            WeightFormat::FourBit(..) | WeightFormat::Gguf(_) => Ok(self.storage_dtype()?.to_safetensors()),
        }
    }

    /// Its size in such a file.
    pub(crate) fn written_bytes(&self) -> usize {
        self.written_dtype().map_or(self.bytes(), |dtype| self.values() * dtype.bitsize() / 8)
    }

    /// The file that it is in.
    pub(crate) fn path(&self) -> &'a Path {
        match self.format {
            WeightFormat::Safetensors(file, _) | WeightFormat::FourBit(file, _) => file.path(),
            WeightFormat::Gguf(tensor) => tensor.file.path(),
        }
    }

    /// An error about it.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ModelError {
        match self.format {
            WeightFormat::Gguf(tensor) => tensor.error(reason),
            WeightFormat::Safetensors(..) | WeightFormat::FourBit(..) => {
                ModelError::Tensor { place: self.place(), tensor: self.name.to_owned(), reason: reason.into() }
            }
        }
    }

    /// An error of the caller's edit of it.
    pub(crate) fn edit_error(&self, source: Box<dyn Error + Send + Sync>) -> ModelError {
        ModelError::Edit { place: self.place(), tensor: self.name.to_owned(), source }
    }

    /// The error of a value that `dtype` cannot hold.
    pub(crate) fn not_finite(&self, dtype: StorageDtype) -> ModelError {
        ModelError::NotFinite { place: self.place(), tensor: self.name.to_owned(), dtype }
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }
}
