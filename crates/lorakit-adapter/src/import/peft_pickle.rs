//! adapter_model.bin, the pickle in which older versions of PEFT saved an adapter's weights.

use std::path::Path;

use crate::error::Result;
use crate::import::torch_file::{TorchFile, TorchTensor};

/// The tensors of a pickled state dict, sorted by key. Nothing in it is executed.
pub(crate) fn pickled_tensors(path: &Path) -> Result<Vec<(String, TorchTensor)>> {
    let mut file = TorchFile::open(path)?;
    let root = file.pickle().root();
    file.tensors(root)
}
