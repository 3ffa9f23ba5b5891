//! adapter_model.bin, the pickle in which older versions of PEFT saved an adapter's weights.

use std::path::Path;

use crate::adapter::Adapter;
use crate::error::{Result, Within};
use crate::import::torch_file::{Dense, TorchFile};
use crate::peft::adapter_files::CONFIG_FILE;
use crate::peft::peft_config::PeftConfig;
use crate::peft::weight_files::WeightFiles;

impl Adapter {
    /// Reads a PEFT folder whose weights are an `adapter_model.bin` or shards of one, so that they can be written as
    /// safetensors; those are read as by [`read`](Self::read). Nothing in a pickle is executed, and everything is checked;
    /// but the weights are copied into memory, so this is for import only.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn import(dir: &Path) -> Result<Self> {
        let files = match dir.join(CONFIG_FILE).is_file().then(|| WeightFiles::find(dir)).transpose()? {
            Some(WeightFiles::Pickle(files)) => files,
            _ => return Self::read(dir),
        };
        let config = PeftConfig::read(&dir.join(CONFIG_FILE))?;
        let mut tensors = Vec::new();
        for path in &files {
            tensors.extend(pickled_tensors(path).within_file(path)?);
        }
        let place = if let [file] = &files[..] { file } else { dir };
        Self::from_tensors(config, tensors.into_iter().map(|(key, (shape, values))| (key, shape, values)))
            .within_file(place)
    }
}

/// The tensors of a pickled state dict, sorted by key.
pub(crate) fn pickled_tensors(path: &Path) -> Result<Vec<(String, Dense)>> {
    let mut file = TorchFile::open(path)?;
    let root = file.pickle().root();
    file.tensors(root)
}
