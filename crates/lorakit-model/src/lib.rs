//! Base models: transformers that are differentiable where adapters are trained, with one patch per site.
//!
//! A [`Base`] is opened from a Hugging Face folder or a GGUF file; its weights stay in the memory-mapped file. Its parts are
//! [`Base::embed`], [`Base::layer`] and [`Base::lm_head`] rather than one closed forward, so that a trainer can go backward
//! layer by layer: in candle's graph or, for adapters over a frozen base on a CPU, by the [`Tape`](layer::tape::Tape) of
//! each layer of [`Base::taped`]. Inside, everything is `[tokens, d]`: sequences are packed in a [`TokenBatch`], and there is
//! no padding. What is added at the sites is given with each call as [`lorakit_lora::Patches`].
//!
//! A row is one stream of tokens. To an encoder-decoder (T5) its first tokens are the source, as
//! [`Sequence::source`](lorakit_lora::Sequence::source) says, and those after it are the target, which begins with the
//! decoder's start token; both stacks' layers are in one list, and each changes the hidden states of its own tokens.
//!
//! [`BaseConfig`] reads a `config.json` and holds the [`Descriptor`](architecture::Descriptor) of its architecture, which
//! says everything that differs between architectures. [`CachedDecoder`] generates with cached keys and values,
//! [`Checkpoint`] reads and edits weight files, and [`BatchParallel`] runs several small batches at once.
//!
//! Deliberately absent: routers, merges, trainers, tasks and tokenizers. What opens, edits or saves a base fails with a
//! [`ModelError`]; what computes, with candle's error.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use candle_core::{DType, Device, Tensor};
//! use lorakit_lora::{Patches, SequenceBatch};
//! use lorakit_model::{Base, BaseOptions};
//! use std::collections::HashMap;
//!
//! // A model of random weights, as any Hugging Face folder.
//! let folder = tempfile::tempdir()?;
//! let config = r#"{"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
//!     "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true}"#;
//! std::fs::write(folder.path().join("config.json"), config)?;
//! let random = |shape: &[usize]| Tensor::randn(0f32, 0.5, shape, &Device::Cpu);
//! let ones = |d: usize| Tensor::ones(d, DType::F32, &Device::Cpu);
//! let tensors = [
//!     ("model.embed_tokens.weight", random(&[16, 8])?),
//!     ("model.layers.0.input_layernorm.weight", ones(8)?),
//!     ("model.layers.0.self_attn.q_proj.weight", random(&[8, 8])?),
//!     ("model.layers.0.self_attn.k_proj.weight", random(&[8, 8])?),
//!     ("model.layers.0.self_attn.v_proj.weight", random(&[8, 8])?),
//!     ("model.layers.0.self_attn.o_proj.weight", random(&[8, 8])?),
//!     ("model.layers.0.post_attention_layernorm.weight", ones(8)?),
//!     ("model.layers.0.mlp.gate_proj.weight", random(&[12, 8])?),
//!     ("model.layers.0.mlp.up_proj.weight", random(&[12, 8])?),
//!     ("model.layers.0.mlp.down_proj.weight", random(&[8, 12])?),
//!     ("model.norm.weight", ones(8)?),
//! ];
//! candle_core::safetensors::save(&HashMap::from(tensors), folder.path().join("model.safetensors"))?;
//!
//! let base = Base::open(folder.path(), &BaseOptions::default())?;
//! let sites: Vec<&str> = base.sites().iter().map(|site| site.name).collect();
//! assert_eq!(sites, ["qkv", "o", "gate_up", "down"]);
//! // Two sequences of three and two tokens, packed.
//! let logits = base.logits(&[1, 5, 9, 2, 4], SequenceBatch::packed([3, 2]), &Patches::none())?;
//! assert_eq!(logits.dims(), [5, 16]);
//! # Ok(())
//! # }
//! ```

pub mod architecture;
pub mod attention;
mod awake_threads;
mod base;
mod base_fingerprint;
mod base_forward;
pub mod batch_parallel;
mod cache_slots;
mod cached_decoder;
mod cuda;
mod error;
mod forward_plan;
mod kv_cache;
pub mod layer;
mod lazy;
pub mod sampling;
mod sequence_loss;
mod source_target;
mod token_batch;
mod transformer_layer;
mod vector_math;
pub mod weights;

pub use architecture::BaseConfig;
pub use base::Base;
pub use base_forward::TapedForward;
pub use batch_parallel::BatchParallel;
pub use cached_decoder::CachedDecoder;
pub use error::ModelError;
pub use forward_plan::ForwardPlan;
pub use sequence_loss::{NllSum, ScoredRow, split_by_tokens, sums_by_row};
pub use token_batch::{TargetToken, TokenBatch};
pub use weights::{BaseOptions, Checkpoint, Rounding, StorageDtype, TokenPrecision, WeightType};
