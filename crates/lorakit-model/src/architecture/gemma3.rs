//! The text model within a folder of the multimodal Gemma 3. What is of images stays in its file and is not used.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::Descriptor;
use crate::architecture::gemma3_text;
use crate::error::Result;

/// `model_type: gemma3`.
pub(crate) static GEMMA3: Architecture =
    Architecture { model_type: "gemma3", descriptor: DESCRIPTOR, gguf: None, read };

const DESCRIPTOR: Descriptor = Descriptor {
    embedding: "model.language_model.embed_tokens",
    layers: "model.language_model.layers",
    final_norm: "model.language_model.norm",
    unused: &["model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector."],
    ..gemma3_text::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let text = json.nested("text_config").ok_or_else(|| json.error("key 'text_config' is missing"))?;
    let config = gemma3_text::read_text(&text, DESCRIPTOR)?;
    let tied = json.flag("tie_word_embeddings", config.tied)?;
    Ok(BaseConfig { tied, model_type: "gemma3".to_owned(), ..config })
}
