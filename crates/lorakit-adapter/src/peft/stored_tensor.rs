//! A safetensors file, memory-mapped: its tensors by name, their values left where they are.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use crate::matrix::Matrix;
use crate::matrix::Precision;
use lorakit_format::mmap::MappedFile;

/// A tensor that a file holds, not read yet.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    /// Its key.
    pub(crate) key: String,
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Mapped { file: Arc<MappedFile>, bytes: Range<usize>, dtype: Dtype },
    Owned(Vec<f32>),
}

/// The tensors of the safetensors file at `path`, sorted by key.
pub(crate) fn read_tensors(path: &Path) -> Result<Vec<StoredTensor>> {
    let map = Arc::new(MappedFile::open(path)?);
    ensure!(map.len() >= 8, "shorter than a safetensors header; the file is empty or cut off");
    let (header, metadata) = SafeTensors::read_metadata(&map)
        .map_err(|error| anyhow::anyhow!("no whole safetensors file: {error}; is the download or copy complete?"))?;
    let mut tensors: Vec<_> =
        metadata.tensors().into_iter().map(|(key, info)| StoredTensor::mapped(key, info, &map, 8 + header)).collect();
    tensors.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(tensors)
}

impl StoredTensor {
    fn mapped(key: String, info: &TensorInfo, map: &Arc<MappedFile>, data: usize) -> Self {
        let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
        let values = Values::Mapped { file: Arc::clone(map), bytes, dtype: info.dtype };
        Self { key, shape: info.shape.clone(), values }
    }

    /// A tensor from elsewhere than a safetensors file.
    pub(crate) fn owned(key: String, shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { key, shape, values: Values::Owned(values) }
    }

    /// The dimensions of a matrix.
    pub(crate) fn dimensions(&self) -> Result<[usize; 2]> {
        match self.shape[..] {
            [rows, cols] => Ok([rows, cols]),
            [_, _, ..] => bail!(
                "tensor `{}`: found shape {:?}; expected two dimensions: convolutions are not \
                 supported",
                self.key,
                self.shape
            ),
            _ => bail!("tensor `{}`: found shape {:?}; expected two dimensions", self.key, self.shape),
        }
    }

    /// The tensor as a matrix.
    pub(crate) fn matrix(self) -> Result<Matrix> {
        let [rows, cols] = self.dimensions()?;
        match self.values {
            Values::Owned(values) => Matrix::new(rows, cols, values),
            Values::Mapped { file, bytes, dtype } => {
                precision(dtype).and_then(|precision| Matrix::mapped([rows, cols], file, bytes, precision))
            }
        }
        .with_context(|| format!("tensor `{}`", self.key))
    }
}

fn precision(dtype: Dtype) -> Result<Precision> {
    match dtype {
        Dtype::F32 => Ok(Precision::F32),
        Dtype::F16 => Ok(Precision::F16),
        Dtype::BF16 => Ok(Precision::Bf16),
        other => bail!("found values of type {other:?}; expected F32, F16 or BF16"),
    }
}
