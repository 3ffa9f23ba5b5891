//! Editing some matrices of a checkpoint: in memory, to open the result, or into files.
//!
//! Values are widened to f32, edited, and rounded once to the type that they are stored in. Everything else stays as it
//! is, byte for byte.

use crate::error::{ModelError, Result};
use crate::weights::checkpoint::{Checkpoint, SINGLE_FILE, present_name, storage_dtype, tensor_error};
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::storage_dtype::StorageDtype;
use half::{bf16, f16};
use lorakit_format::safetensors::{SafetensorsFile, TensorEntry};
use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Edits the row-major values of the tensor of that name.
pub type Edit<'a> = dyn FnMut(&str, &mut [f32]) -> std::result::Result<(), Box<dyn Error + Send + Sync>> + 'a;

/// What rounding to the stored type took away, over all edited tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounding {
    /// The sum of the squared rounding errors; 0 where the type is f32.
    pub squared: f64,
}

impl Checkpoint {
    /// The checkpoint with the tensors `names` edited in memory; the others stay in their files.
    ///
    /// Values are first rounded to `keep`, where that is given and narrower than the file's type, and stored in it
    /// after the edit; without it they are stored in the file's type. `exact` stores the edited ones in f32 instead.
    ///
    /// # Errors
    /// If a tensor is missing or not a matrix, `edit` fails, or a value is not finite in the stored type.
    pub fn with_edits(
        mut self,
        names: &BTreeSet<String>,
        keep: Option<StorageDtype>,
        exact: bool,
        edit: &mut Edit,
    ) -> Result<Self> {
        for name in names {
            let (file, entry) = self.entry(name)?;
            let (rows, columns) = dimensions(file, name, entry)?;
            let own = storage_dtype(file, name, entry)?;
            let stored = self.get(name, &entry.shape)?;
            let (stored, dtype) = match keep {
                Some(keep) if own != keep && keep != StorageDtype::F32 => (stored.rounded_to(keep), keep),
                _ => (stored, own),
            };
            let mut values = stored.values().into_owned();
            edit(name, &mut values).map_err(|source| edit_error(file, name, source))?;
            let wide = MmapMatrix::from_values(values, rows, columns)?;
            let edited = if exact { wide } else { wide.rounded_to(dtype) };
            if !edited.values().iter().all(|value| value.is_finite()) {
                return Err(not_finite(file, name, dtype));
            }
            self.edited.insert(name.clone(), edited);
        }
        Ok(self)
    }

    /// Writes the checkpoint's files into `folder`, under their own names and synced, with the tensors `names` edited
    /// and every value in the type of its file. One tensor at a time is in memory.
    ///
    /// # Errors
    /// If a tensor is missing or not a matrix, `edit` fails, a value is not finite in the file's type, or a file
    /// cannot be written.
    pub fn write_edited(&self, folder: &Path, names: &BTreeSet<String>, edit: &mut Edit) -> Result<Rounding> {
        // A missing name is found before anything is written.
        names.iter().try_for_each(|name| self.entry(name).map(|_| ()))?;
        let mut rounding = Rounding::default();
        for file in &self.files {
            let path = folder.join(file_name(file));
            let failed = |source: io::Error| ModelError::Write { path: path.clone(), source };
            let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?);
            out.write_all(file.header()).map_err(failed)?;
            for (stored, entry) in in_file_order(file) {
                let name = present_name(stored);
                if names.contains(&name) {
                    let bytes = self.edited_bytes((file, &name, entry), &mut rounding, edit)?;
                    out.write_all(&bytes).map_err(failed)?;
                } else {
                    out.write_all(&file.bytes()[entry.bytes.clone()]).map_err(failed)?;
                }
            }
            out.into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| file.sync_all())
                .map_err(failed)?;
        }
        Ok(rounding)
    }

    /// The bytes of a tensor after the edit, in the type of its file.
    fn edited_bytes(
        &self,
        (file, name, entry): (&SafetensorsFile, &str, &TensorEntry),
        rounding: &mut Rounding,
        edit: &mut Edit,
    ) -> Result<Vec<u8>> {
        dimensions(file, name, entry)?;
        let dtype = storage_dtype(file, name, entry)?;
        let mut values = self.get(name, &entry.shape)?.values().into_owned();
        edit(name, &mut values).map_err(|source| edit_error(file, name, source))?;
        let mut bytes = Vec::with_capacity(values.len() * dtype.size());
        for value in values {
            let rounded = match dtype {
                StorageDtype::F32 => {
                    bytes.extend(value.to_le_bytes());
                    value
                }
                StorageDtype::F16 => {
                    let rounded = f16::from_f32(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.to_f32()
                }
                StorageDtype::BF16 => {
                    let rounded = bf16::from_f32(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.to_f32()
                }
            };
            if !rounded.is_finite() {
                return Err(not_finite(file, name, dtype));
            }
            rounding.squared += (f64::from(rounded) - f64::from(value)).powi(2);
        }
        Ok(bytes)
    }

    /// The narrowest type in which any of the tensors `names` is stored.
    ///
    /// # Errors
    /// If a tensor is missing or of an unsupported type.
    pub fn narrowest_dtype(&self, names: &BTreeSet<String>) -> Result<StorageDtype> {
        let mut narrowest = StorageDtype::F32;
        for name in names {
            let (file, entry) = self.entry(name)?;
            let dtype = storage_dtype(file, name, entry)?;
            if dtype.unit_roundoff() > narrowest.unit_roundoff() {
                narrowest = dtype;
            }
        }
        Ok(narrowest)
    }

    fn entry(&self, name: &str) -> Result<(&SafetensorsFile, &TensorEntry)> {
        self.find(name).ok_or_else(|| ModelError::Tensor {
            place: self.place(),
            tensor: name.to_owned(),
            reason: "is missing".to_owned(),
        })
    }
}

fn not_finite(file: &SafetensorsFile, name: &str, dtype: StorageDtype) -> ModelError {
    ModelError::NotFinite { place: file.path().display().to_string(), tensor: name.to_owned(), dtype }
}

fn edit_error(file: &SafetensorsFile, name: &str, source: Box<dyn Error + Send + Sync>) -> ModelError {
    ModelError::Edit { place: file.path().display().to_string(), tensor: name.to_owned(), source }
}

/// The name under which a file is written again; bytes in memory become the one file of a model.
fn file_name(file: &SafetensorsFile) -> &str {
    let name = file.path().file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(".safetensors") { name } else { SINGLE_FILE }
}

/// The tensors of a file in the order of their bytes.
fn in_file_order(file: &SafetensorsFile) -> Vec<(&String, &TensorEntry)> {
    let mut tensors: Vec<_> = file.tensors().iter().collect();
    tensors.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
    tensors
}

fn dimensions(file: &SafetensorsFile, name: &str, entry: &TensorEntry) -> Result<(usize, usize)> {
    let &[rows, columns] = entry.shape.as_slice() else {
        return Err(tensor_error(file, name, format!("has shape {:?}; expected a matrix", entry.shape)));
    };
    Ok((rows, columns))
}
