//! The files of an adapter folder, by the names that PEFT gives them.

/// The description of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The weights of an adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The name under which PEFT looks for the weights where there is no safetensors file.
pub(crate) const PICKLE_FILE: &str = "adapter_model.bin";
