//! What can be trained: LoRA adapters, all weights of a base, skills with their routing (Poly and MHR).

pub mod dropout;
pub mod lora_init;
mod lora_patch;
pub mod lora_stack;
pub mod routing_fit;
pub mod skill_mixing;
pub mod skill_stack;
pub(crate) mod trainable_set;
