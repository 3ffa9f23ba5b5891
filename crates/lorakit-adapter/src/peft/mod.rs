//! Adapter folders of Hugging Face PEFT: what adapter_config.json means, and both files read and written.

pub(crate) mod adapter_files;
pub(crate) mod adapter_tensor;
pub(crate) mod base_tensors;
mod config_json;
pub(crate) mod path_pattern;
pub(crate) mod peft_config;
pub(crate) mod read_peft;
pub(crate) mod refused_features;
mod selection;
pub(crate) mod target_modules;
pub(crate) mod target_names;
pub(crate) mod tensor_key;
pub(crate) mod unsupported;
mod validate;
pub(crate) mod weight_files;
mod weight_tying;
pub(crate) mod wrapper_prefix;
mod write_peft;
