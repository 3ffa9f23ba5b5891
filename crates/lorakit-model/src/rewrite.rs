//! A checkpoint with some of its matrices changed: in memory, to be opened, or written to files.
//!
//! The values are widened to f32, changed, and rounded once to the type in which they are kept. All else stays as it
//! is, byte for byte.

use crate::checkpoint::{Checkpoint, Shard};
use crate::weight::{Element, Mapped};
use anyhow::{Context, Result, ensure};
use half::{bf16, f16};
use safetensors::tensor::TensorInfo;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Changes the row-major values of the tensor of that name.
pub type Change<'a> = dyn FnMut(&str, &mut [f32]) -> Result<()> + 'a;

/// The name of the one weight file of a model that is not split.
const SINGLE_FILE: &str = "model.safetensors";

/// What rounding to the kept type took away, over all changed tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounding {
    /// The sum of the squares of what was rounded off; 0 where the type is f32.
    pub squared: f64,
}

impl Checkpoint {
    /// The checkpoint with the tensors `names` changed, in memory; the others stay in their files.
    ///
    /// Values are first rounded to `keep`, where that is given and narrower than the file's type, and kept in it
    /// after the change; without it they are kept in the file's type. `exact` keeps the changed ones in f32 instead.
    ///
    /// # Errors
    /// If a tensor is missing or no matrix, `change` fails, or a value is not finite in the kept type.
    pub fn changed(
        mut self,
        names: &BTreeSet<String>,
        keep: Option<Element>,
        exact: bool,
        change: &mut Change,
    ) -> Result<Self> {
        for name in names {
            let (shard, info) = self.entry(name)?;
            let (rows, columns) = dimensions(shard, name, info)?;
            let own = element(shard, name, info)?;
            let stored = self.get(name, &info.shape)?;
            let (stored, kept) = match keep {
                Some(keep) if own != keep && keep != Element::F32 => (stored.narrowed(keep), keep),
                _ => (stored, own),
            };
            let mut values = stored.values().into_owned();
            change(name, &mut values)?;
            let wide = Mapped::from_values(values, rows, columns)?;
            let held = if exact { wide } else { wide.narrowed(kept) };
            ensure!(
                held.values().iter().all(|value| value.is_finite()),
                "{}: tensor '{name}' is not finite in {kept:?} after the change",
                shard.path.display()
            );
            self.overlay.insert(name.clone(), held);
        }
        Ok(self)
    }

    /// Writes the checkpoint's files into `folder`, under their own names and synced, with the tensors `names`
    /// changed and every value in the type of its file. One tensor at a time is held in memory.
    ///
    /// # Errors
    /// If a tensor is missing or no matrix, `change` fails, a value is not finite in the file's type, or a file
    /// cannot be written.
    pub fn rewrite(&self, folder: &Path, names: &BTreeSet<String>, change: &mut Change) -> Result<Rounding> {
        // A name that is not there is found before anything is written.
        names.iter().try_for_each(|name| self.entry(name).map(|_| ()))?;
        let mut rounding = Rounding::default();
        for shard in &self.shards {
            let path = folder.join(shard.file_name());
            let mut write = || -> Result<()> {
                let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
                file.write_all(&shard.bytes[..shard.data])?;
                for (name, info) in shard.tensors() {
                    let bytes = &shard.bytes[shard.range(info)];
                    match names.contains(&name) {
                        false => file.write_all(bytes)?,
                        true => self.write_changed(shard, (&name, info), &mut file, &mut rounding, change)?,
                    }
                }
                Ok(file.into_inner().map_err(|error| error.into_error())?.sync_all()?)
            };
            write().with_context(|| format!("{} could not be written", path.display()))?;
        }
        Ok(rounding)
    }

    fn write_changed(
        &self,
        shard: &Shard,
        (name, info): (&str, &TensorInfo),
        file: &mut impl Write,
        rounding: &mut Rounding,
        change: &mut Change,
    ) -> Result<()> {
        dimensions(shard, name, info)?;
        let kept = element(shard, name, info)?;
        let mut values = self.get(name, &info.shape)?.values().into_owned();
        change(name, &mut values)?;
        let mut bytes = Vec::with_capacity(values.len() * kept.size());
        for value in values {
            let rounded = match kept {
                Element::F32 => {
                    bytes.extend(value.to_le_bytes());
                    value
                }
                Element::F16 => {
                    let rounded = f16::from_f32(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.to_f32()
                }
                Element::BF16 => {
                    let rounded = bf16::from_f32(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.to_f32()
                }
            };
            ensure!(rounded.is_finite(), "tensor '{name}' is not finite in {kept:?} after the change");
            rounding.squared += (f64::from(rounded) - f64::from(value)).powi(2);
        }
        Ok(file.write_all(&bytes)?)
    }

    /// Whether the tensor of that name was changed in memory.
    pub(crate) fn is_changed(&self, name: &str) -> bool {
        self.overlay.contains_key(name)
    }

    /// The narrowest type in which any of the tensors `names` is kept.
    ///
    /// # Errors
    /// If a tensor is missing or of a type that lorakit does not read.
    pub fn narrowest(&self, names: &BTreeSet<String>) -> Result<Element> {
        let mut narrowest = Element::F32;
        for name in names {
            let (shard, info) = self.entry(name)?;
            let kept = element(shard, name, info)?;
            if kept.unit_roundoff() > narrowest.unit_roundoff() {
                narrowest = kept;
            }
        }
        Ok(narrowest)
    }

    fn entry(&self, name: &str) -> Result<(&Shard, &TensorInfo)> {
        let shard = self.names.get(name).map(|&index| &self.shards[index]);
        shard
            .and_then(|shard| Some((shard, shard.metadata.info(name)?)))
            .with_context(|| format!("{}: tensor '{name}' is missing", self.place()))
    }
}

impl Shard {
    /// The name under which the file is written again; bytes in memory become the one file of a model.
    fn file_name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".safetensors") { name } else { SINGLE_FILE }
    }

    /// The tensors in the order of their bytes.
    fn tensors(&self) -> Vec<(String, &TensorInfo)> {
        let mut tensors: Vec<(String, &TensorInfo)> = self.metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        tensors
    }
}

fn dimensions(shard: &Shard, name: &str, info: &TensorInfo) -> Result<(usize, usize)> {
    let &[rows, columns] = info.shape.as_slice() else {
        anyhow::bail!("{}: tensor '{name}' has shape {:?}; expected a matrix", shard.path.display(), info.shape)
    };
    Ok((rows, columns))
}

fn element(shard: &Shard, name: &str, info: &TensorInfo) -> Result<Element> {
    Element::of(info.dtype).with_context(|| {
        format!("{}: tensor '{name}' is {:?}; lorakit reads F32, F16 and BF16", shard.path.display(), info.dtype)
    })
}
