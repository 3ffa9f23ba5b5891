//! The Hugging Face Hub: where huggingface_hub keeps its cache, token and settings, and downloads into that cache.

pub mod client;
pub mod dataset_files;
pub mod file_download;
pub mod glob;
pub mod hub_adapters;
pub mod hub_environment;
pub mod hub_failure;
pub mod no_proxy;
pub mod repository;
pub mod snapshot;
