//! Editing some matrices of a checkpoint: in memory, to open the result, or into files.
//!
//! Values are widened to f32, edited, and rounded once to the type that they are stored in. Everything else stays as it
//! is, byte for byte.

use crate::error::{ModelError, Result};
use crate::weights::checkpoint::{Checkpoint, SINGLE_FILE, WeightFiles};
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::storage_dtype::StorageDtype;
use crate::weights::stored_weight::{StoredWeight, WeightFormat};
use half::{bf16, f16};
use lorakit_format::safetensors::{SafetensorsFile, TensorEntry, header};
use std::borrow::Cow;
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
            let stored = self.required(name)?;
            let (rows, columns) = stored.dimensions()?;
            let own = stored.storage_dtype()?;
            let matrix = self.get(name, stored.shape())?;
            let (matrix, dtype) = match keep {
                Some(keep) if own != keep && keep != StorageDtype::F32 => (matrix.rounded_to(keep)?, keep),
                _ => (matrix, own),
            };
            let mut values = matrix.values().into_owned();
            edit(name, &mut values).map_err(|source| stored.edit_error(source))?;
            let wide = MmapMatrix::from_values(values, rows, columns)?;
            let edited = if exact { wide } else { wide.rounded_to(dtype)? };
            if !edited.values().iter().all(|value| value.is_finite()) {
                return Err(stored.not_finite(dtype));
            }
            self.edited.insert(name.clone(), edited);
        }
        Ok(self)
    }

    /// Writes the checkpoint's files into `folder`, under their own names and synced, with the tensors `names` edited, those
    /// of [`Checkpoint::with_edits`] as edited then, and every value in the type of its file. A model in GGUF becomes one safetensors file, in which quantized values
    /// are f32; values in the 4 bits of bitsandbytes get the type that was quantized. Copies follow the tensors of the file
    /// that has their values. One tensor at a time is in memory.
    ///
    /// # Errors
    /// If a tensor is missing or not a matrix, `edit` fails, a value is not finite in the file's type, or a file
    /// cannot be written.
    pub fn write_edited(&self, folder: &Path, names: &BTreeSet<String>, edit: &mut Edit) -> Result<Rounding> {
        // A missing name is found before anything is written.
        names.iter().try_for_each(|name| self.required(name).map(|_| ()))?;
        let mut edits = Edits { names, edit, rounding: Rounding::default() };
        match &self.files {
            WeightFiles::Safetensors(files, places) => {
                for (index, file) in files.iter().enumerate() {
                    let names = in_file_order(file).into_iter().map(|(name, _)| self.stored_names.present(name));
                    // Of a tensor that is in two files, one is used.
                    let used = names.filter(|name| places.get(name).is_some_and(|place| place.file == index));
                    let mut tensors: Vec<StoredWeight> = used.filter_map(|name| self.find(&name)).collect();
                    let own = tensors.len();
                    tensors.extend(self.copied().filter(|copy| copy.path() == file.path()));
                    let is_quantized = |weight: &StoredWeight| matches!(weight.format, WeightFormat::FourBit(..));
                    let are_others = tensors.len() > own || own < file.tensors().len();
                    let is_changed = are_others || self.stored_names.are_replaced();
                    let header: Cow<[u8]> = match is_changed || tensors.iter().any(is_quantized) {
                        true => plain_header(tensors.iter().copied())?.into(),
                        false => file.header().into(),
                    };
                    self.write_file(&folder.join(file_name(file)), &header, tensors.into_iter(), &mut edits)?;
                }
            }
            WeightFiles::Gguf(_) => {
                let header = plain_header(self.tensors())?;
                self.write_file(&folder.join(SINGLE_FILE), &header, self.tensors(), &mut edits)?;
            }
        }
        Ok(edits.rounding)
    }

    /// Writes and syncs a safetensors file: its header, then the bytes of each tensor.
    fn write_file<'a>(
        &self,
        path: &Path,
        header: &[u8],
        tensors: impl Iterator<Item = StoredWeight<'a>>,
        edits: &mut Edits,
    ) -> Result<()> {
        let failed = |source: io::Error| ModelError::Write { path: path.to_owned(), source };
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
        out.write_all(header).map_err(failed)?;
        for stored in tensors {
            out.write_all(&edits.bytes_after(stored, self)?).map_err(failed)?;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()).map_err(failed)
    }

    /// The narrowest type in which any of the tensors `names` is stored.
    ///
    /// # Errors
    /// If a tensor is missing or of an unsupported type.
    pub fn narrowest_dtype(&self, names: &BTreeSet<String>) -> Result<StorageDtype> {
        let mut narrowest = StorageDtype::F32;
        for name in names {
            let dtype = self.required(name)?.storage_dtype()?;
            if dtype.unit_roundoff() > narrowest.unit_roundoff() {
                narrowest = dtype;
            }
        }
        Ok(narrowest)
    }

    /// A tensor that must be there.
    fn required(&self, name: &str) -> Result<StoredWeight<'_>> {
        self.find(name).ok_or_else(|| ModelError::Tensor {
            place: self.place(),
            tensor: name.to_owned(),
            reason: "is missing".to_owned(),
        })
    }
}

/// The header of a safetensors file of tensors in their types, none of them quantized.
fn plain_header<'a>(tensors: impl Iterator<Item = StoredWeight<'a>>) -> Result<Vec<u8>> {
    let entry =
        |weight: StoredWeight<'_>| Ok((weight.name.to_owned(), weight.written_dtype()?, weight.shape().to_vec()));
    Ok(header(&tensors.map(entry).collect::<Result<Vec<_>>>()?))
}

/// Edits of the tensors `names`, and what rounding them lost so far.
struct Edits<'a> {
    names: &'a BTreeSet<String>,
    edit: &'a mut Edit<'a>,
    rounding: Rounding,
}

impl Edits<'_> {
    /// The bytes of a tensor of `checkpoint`, after the edit if it is to be edited now, and after an earlier one in memory.
    fn bytes_after<'a>(&mut self, stored: StoredWeight<'a>, checkpoint: &Checkpoint) -> Result<Cow<'a, [u8]>> {
        let is_named = self.names.contains(stored.name);
        if is_named || checkpoint.is_edited(stored.name) {
            stored.dimensions()?;
            let dtype = stored.storage_dtype()?;
            let mut values = checkpoint.get(stored.name, stored.shape())?.values().into_owned();
            if is_named {
                (self.edit)(stored.name, &mut values).map_err(|source| stored.edit_error(source))?;
            }
            let (bytes, lost) = rounded(&values, dtype);
            self.rounding.squared += lost.ok_or_else(|| stored.not_finite(dtype))?;
            return Ok(bytes.into());
        }
        match stored.format {
            WeightFormat::Safetensors(file, entry) => Ok((&file.bytes()[entry.bytes.clone()]).into()),
            WeightFormat::Gguf(_) | WeightFormat::FourBit(..) => {
                Ok(rounded(&stored.matrix()?.values(), stored.storage_dtype()?).0.into())
            }
        }
    }
}

/// The values in a type, and the sum of the squared rounding errors; none where a value is not finite there.
fn rounded(values: &[f32], dtype: StorageDtype) -> (Vec<u8>, Option<f64>) {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    let mut lost = 0.0;
    for &value in values {
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
        lost += if rounded.is_finite() { (f64::from(rounded) - f64::from(value)).powi(2) } else { f64::INFINITY };
    }
    (bytes, Some(lost).filter(|lost| lost.is_finite()))
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
