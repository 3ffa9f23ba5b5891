//! Adapters in other formats than PEFT's safetensors. Their files are read as data: nothing in them is executed.

pub(crate) mod dense_adapter;
pub(crate) mod gguf_lora;
pub(crate) mod mttl_library;
pub(crate) mod peft_pickle;
mod pickle;
mod pickle_machine;
mod pickle_value;
pub(crate) mod token_rows;
mod torch_file;
