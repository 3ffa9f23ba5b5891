//! adapter_model.bin, the pickle in which older versions of PEFT kept an adapter's weights.

use std::path::Path;

use anyhow::{Context, Result};

use crate::adapter::Adapter;
use crate::import::torch_file::TorchFile;
use crate::peft::adapter_files::{CONFIG_FILE, PICKLE_FILE};
use crate::peft::peft_config::PeftConfig;

impl Adapter {
    /// Reads a PEFT folder whose weights are an `adapter_model.bin`, so that they can be written as
    /// safetensors. Nothing in the pickle is executed, and all is judged as [`read`](Self::read)
    /// judges it; but the weights are copied into memory, so this is for import only.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn import(dir: &Path) -> Result<Self> {
        let config = PeftConfig::read(&dir.join(CONFIG_FILE))?;
        let path = dir.join(PICKLE_FILE);
        let tensors = || -> Result<Vec<_>> {
            let mut file = TorchFile::open(&path)?;
            let tensors = file.tensors(file.pickle().root())?;
            Ok(tensors.into_iter().map(|(key, (shape, values))| (key, shape, values)).collect())
        };
        tensors().and_then(|tensors| Self::from_tensors(config, tensors)).with_context(|| path.display().to_string())
    }
}
