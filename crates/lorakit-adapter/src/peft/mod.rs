//! Adapter folders of Hugging Face PEFT: what adapter_config.json means, and both files read and written.

pub(crate) mod adapter_files;
mod config_json;
pub(crate) mod path_pattern;
pub(crate) mod peft_config;
mod read_peft;
mod stored_tensor;
pub(crate) mod target_modules;
pub(crate) mod target_names;
mod tensor_key;
pub(crate) mod unsupported;
mod validate;
mod write_peft;
