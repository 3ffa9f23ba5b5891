//! A library on disk: experts, fitted routers, fine-tuned models, and the runs that made them.

pub(crate) mod base_identity;
mod expert_bases;
pub(crate) mod expert_name;
pub(crate) mod expert_record;
mod json_file;
pub(crate) mod library_layout;
pub(crate) mod library_lock;
pub(crate) mod library_models;
pub(crate) mod library_routers;
pub(crate) mod library_store;
pub(crate) mod opaque_record;
mod transaction;
