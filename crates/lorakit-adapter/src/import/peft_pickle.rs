//! adapter_model.bin, the pickle in which older versions of PEFT saved an adapter's weights.

use std::path::Path;

use crate::adapter::Adapter;
use crate::error::{Result, Within};
use crate::import::torch_file::TorchFile;
use crate::peft::adapter_files::{CONFIG_FILE, PICKLE_FILE};
use crate::peft::peft_config::PeftConfig;

impl Adapter {
    /// Reads a PEFT folder whose weights are an `adapter_model.bin`, so that they can be written as safetensors. Nothing
    /// in the pickle is executed, and everything is checked as by [`read`](Self::read); but the weights are copied into
    /// memory, so this is for import only.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn import(dir: &Path) -> Result<Self> {
        let config = PeftConfig::read(&dir.join(CONFIG_FILE))?;
        let path = dir.join(PICKLE_FILE);
        let read = || {
            let mut file = TorchFile::open(&path)?;
            let tensors = file.tensors(file.pickle().root())?;
            Self::from_tensors(config, tensors.into_iter().map(|(key, (shape, values))| (key, shape, values)))
        };
        read().within_file(&path)
    }
}
