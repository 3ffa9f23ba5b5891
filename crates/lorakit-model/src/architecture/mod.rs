//! What differs between base models: one file for each architecture, and one line in [`ARCHITECTURES`].
//!
//! A new architecture is a file with its [`Descriptor`] and the function that reads its `config.json`. The decoder layer,
//! training, memory estimates and default targets read the descriptor; nothing else names an architecture.

pub(crate) mod base_config;
pub(crate) mod config_keys;
pub(crate) mod descriptor;
mod layer_sites;
pub(crate) mod llama;
pub(crate) mod mistral;
pub(crate) mod phi;
pub(crate) mod registry;

pub use base_config::{Architecture, BaseConfig, RopeConfig, RopeScaling};
pub use descriptor::{BlockDescriptor, Descriptor, Features, ProjectionDescriptor, SiteDescriptor};
pub use registry::{ARCHITECTURES, module_names};
