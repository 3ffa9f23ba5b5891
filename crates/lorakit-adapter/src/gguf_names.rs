//! How llama.cpp names and arranges the modules of Hugging Face's models in GGUF files.
//!
//! It rotates pairs of neighboring features of llama's queries and keys where Hugging Face rotates the two halves of a
//! head, so the rows of their weights, and of their adapters' B's, are reordered.

use crate::error::{AdapterError, Result};
use crate::library::base_identity::BaseIdentity;
use crate::peft::wrapper_prefix::TEXT_MODEL;

/// The module of an embedding, whose A llama.cpp reads by token.
pub(crate) const EMBEDDING: &str = "model.embed_tokens";

/// llama.cpp's tensor of an embedding.
pub(crate) const EMBEDDING_TENSOR: &str = "token_embd.weight";

const HEAD: &str = "lm_head";
const HEAD_TENSOR: &str = "output.weight";

/// An architecture by its two names.
struct LlamaArchitecture {
    /// `model_type` of config.json.
    model_types: &'static [&'static str],
    /// `general.architecture`.
    name: &'static str,
    /// Whether it rotates pairs of neighbors.
    reorders: bool,
}

/// As llama.cpp's converter writes them (its classes of Mistral 3 and of Granite are that of Llama under another name). Its
/// versions before the architecture `mistral3` wrote Mistral 3 as `llama`, which an adapter of `mistral3` does not fit.
const ARCHITECTURES: [LlamaArchitecture; 13] = [
    of(&["llama", "mistral"], "llama", true),
    of(&["mistral3", "ministral3"], "mistral3", true),
    of(&["qwen2"], "qwen2", false),
    of(&["qwen3"], "qwen3", false),
    of(&["gemma"], "gemma", false),
    of(&["gemma2"], "gemma2", false),
    of(&["gemma3", "gemma3_text"], "gemma3", false),
    of(&["phi"], "phi2", false),
    of(&["phi3"], "phi3", false),
    of(&["olmo2"], "olmo2", false),
    of(&["granite"], "granite", true),
    of(&["smollm3"], "smollm3", true),
    of(&["starcoder2"], "starcoder2", false),
];

const fn of(model_types: &'static [&'static str], name: &'static str, reorders: bool) -> LlamaArchitecture {
    LlamaArchitecture { model_types, name, reorders }
}

/// A module of a layer: its path within the layer, llama.cpp's name of it, and the only architectures that have it under
/// this name, if there is another one.
type LayerModule = (&'static str, &'static str, &'static [&'static str]);

const MODULES: [LayerModule; 14] = [
    ("self_attn.q_proj", "attn_q", &[]),
    ("self_attn.k_proj", "attn_k", &[]),
    ("self_attn.v_proj", "attn_v", &[]),
    ("self_attn.qkv_proj", "attn_qkv", &[]),
    ("self_attn.dense", "attn_output", &["phi2"]),
    ("self_attn.o_proj", "attn_output", &[]),
    ("mlp.gate_proj", "ffn_gate", &[]),
    ("mlp.fc1", "ffn_up", &["phi2"]),
    // Phi-3 has gate and up side by side, under the name of the latter.
    ("mlp.gate_up_proj", "ffn_up", &["phi3"]),
    ("mlp.c_fc", "ffn_up", &["starcoder2"]),
    ("mlp.up_proj", "ffn_up", &[]),
    ("mlp.fc2", "ffn_down", &["phi2"]),
    ("mlp.c_proj", "ffn_down", &["starcoder2"]),
    ("mlp.down_proj", "ffn_down", &[]),
];

/// llama.cpp's name for the architecture of a base whose config.json has this `model_type`; None where it is not known.
pub(crate) fn architecture_name(model_type: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|known| known.model_types.contains(&model_type)).map(|known| known.name)
}

/// llama.cpp's tensor of a module; None where the module has no counterpart. The language model of a multimodal one has
/// the names that it has alone.
pub(crate) fn tensor_name(module: &str) -> Option<String> {
    let module = module.strip_prefix(TEXT_MODEL).map_or_else(|| module.to_owned(), |rest| format!("model.{rest}"));
    match module.as_str() {
        HEAD => return Some(HEAD_TENSOR.to_owned()),
        EMBEDDING => return Some(EMBEDDING_TENSOR.to_owned()),
        _ => {}
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, name, _) = MODULES.iter().find(|(path, ..)| *path == part)?;
    let layer: usize = layer.parse().ok()?;
    Some(format!("blk.{layer}.{name}.weight"))
}

/// The module of a tensor in llama.cpp's `architecture`; None where it is not known.
pub(crate) fn module_path(tensor: &str, architecture: &str) -> Option<String> {
    ARCHITECTURES.iter().find(|known| known.name == architecture)?;
    match tensor {
        HEAD_TENSOR => return Some(HEAD.to_owned()),
        EMBEDDING_TENSOR => return Some(EMBEDDING.to_owned()),
        _ => {}
    }
    let (layer, part) = tensor.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
    let is_here = |only: &[&str]| only.is_empty() || only.contains(&architecture);
    let (path, ..) = MODULES.iter().find(|(_, name, only)| *name == part && is_here(only))?;
    let layer: usize = layer.parse().ok()?;
    Some(format!("model.layers.{layer}.{path}"))
}

/// The dimension of a base that says into how many heads the outputs of a module are reordered in llama.cpp's
/// `architecture`; None for modules whose outputs are not.
pub(crate) fn reordered_heads(module: &str, architecture: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|known| known.name == architecture && known.reorders)?;
    match module.rsplit('.').next() {
        Some("q_proj") => Some("heads"),
        Some("k_proj") => Some("kv_heads"),
        _ => None,
    }
}

/// The value of that dimension.
pub(crate) fn head_count(dimension: &str, base: &BaseIdentity) -> Option<usize> {
    base.dimensions.get(dimension).map(|&heads| heads as usize)
}

/// The row in llama.cpp of each of a module's outputs in Hugging Face's model, which has `heads` heads: those of the first
/// and of the second half of a head come in turn.
///
/// # Errors
/// If the outputs are not so many heads of an even size.
pub fn llama_cpp_row_order(outputs: usize, heads: usize) -> Result<Vec<usize>> {
    if heads == 0 || !outputs.is_multiple_of(2 * heads) {
        return Err(AdapterError::Shape(format!(
            "has {outputs} outputs, which are not {heads} heads of an even size; is it of another base?"
        )));
    }
    let (head, half) = (outputs / heads, outputs / heads / 2);
    let row = |output: usize| {
        let within = output % head;
        output - within + within % half * 2 + within / half
    };
    Ok((0..outputs).map(row).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_language_model_of_a_multimodal_one_has_the_names_that_it_has_alone() {
        for module in ["layers.3.mlp.up_proj", "embed_tokens"] {
            let name = tensor_name(&format!("model.{module}"));
            assert!(name.is_some());
            assert_eq!(tensor_name(&format!("model.language_model.{module}")), name);
        }
        assert_eq!(tensor_name("model.vision_tower.layers.3.mlp.up_proj"), None);
    }

    #[test]
    fn halves_of_heads_come_in_turn() {
        assert_eq!(llama_cpp_row_order(12, 2).unwrap(), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(llama_cpp_row_order(4, 2).unwrap(), [0, 1, 2, 3]);
        for (outputs, heads) in [(6, 2), (2, 2), (8, 0), (7, 1)] {
            assert!(llama_cpp_row_order(outputs, heads).unwrap_err().to_string().contains("heads of an even size"));
        }
    }
}
