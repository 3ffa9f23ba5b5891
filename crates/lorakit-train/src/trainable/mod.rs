//! What can be trained: LoRA adapters, all weights of a base, skills with their routing (Poly and MHR).

pub mod dropout;
pub mod fit_routing;
pub mod lora_stack;
pub mod skill_stack;
pub(crate) mod trainable_set;
