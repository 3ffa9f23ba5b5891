//! The tensors of an adapter, their values in memory or still in a mapped safetensors file.

use std::ops::Range;
use std::path::Path;

use lorakit_format::mmap::FileBytes;
use lorakit_format::safetensors::{Dtype, SafetensorsFile};

use crate::error::{AdapterError, Result, Within};
use crate::matrix::{Matrix, Precision};

/// A tensor of an adapter; values in a file were not read yet.
#[derive(Clone, Debug)]
pub(crate) struct AdapterTensor {
    /// Its key.
    pub(crate) key: String,
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    InFile { file: FileBytes, bytes: Range<usize>, dtype: Dtype },
    Owned(Vec<f32>),
}

/// The tensors of the safetensors file at `path`, sorted by key.
pub(crate) fn map_tensors(path: &Path) -> Result<Vec<AdapterTensor>> {
    let file = SafetensorsFile::open(path)?;
    let tensors = file.tensors().iter().map(|(key, entry)| AdapterTensor {
        key: key.clone(),
        shape: entry.shape.clone(),
        values: Values::InFile { file: file.bytes().clone(), bytes: entry.bytes.clone(), dtype: entry.dtype },
    });
    Ok(tensors.collect())
}

impl AdapterTensor {
    /// A tensor from elsewhere than a safetensors file, with its values row by row.
    pub(crate) fn owned(key: String, shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { key, shape, values: Values::Owned(values) }
    }

    /// Its dimensions.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The two dimensions of a matrix.
    pub(crate) fn dimensions(&self) -> Result<[usize; 2]> {
        let hint = match self.shape[..] {
            [rows, cols] => return Ok([rows, cols]),
            [_, _, ..] => ": convolutions are not supported",
            _ => "",
        };
        let (key, shape) = (&self.key, &self.shape);
        Err(AdapterError::Tensors(format!("tensor `{key}`: found shape {shape:?}; expected two dimensions{hint}")))
    }

    /// A vector as a matrix of one row, and a matrix as it is.
    pub(crate) fn rows(mut self) -> Result<Matrix> {
        if let [length] = self.shape[..] {
            self.shape = vec![1, length];
        }
        self.matrix()
    }

    /// The tensor as a matrix.
    pub(crate) fn matrix(self) -> Result<Matrix> {
        let [rows, cols] = self.dimensions()?;
        match self.values {
            Values::Owned(values) => Matrix::new(rows, cols, values),
            // Rounded, as PEFT rounds them.
            Values::InFile { file, bytes, dtype: Dtype::F64 } => {
                let values = file[bytes].as_chunks().0.iter().map(|value| f64::from_le_bytes(*value) as f32);
                Matrix::new(rows, cols, values.collect())
            }
            Values::InFile { file, bytes, dtype } => {
                precision(dtype).and_then(|precision| Matrix::in_file([rows, cols], file, bytes, precision))
            }
        }
        .within(|| format!("tensor `{}`", self.key))
    }
}

fn precision(dtype: Dtype) -> Result<Precision> {
    match dtype {
        Dtype::F32 => Ok(Precision::F32),
        Dtype::F16 => Ok(Precision::F16),
        Dtype::BF16 => Ok(Precision::Bf16),
        other => Err(AdapterError::Tensors(format!("found values of type {other:?}; expected F32, F16, BF16 or F64"))),
    }
}
