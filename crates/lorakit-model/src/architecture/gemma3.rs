//! The text model within a folder of the multimodal Gemma 3.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::Descriptor;
use crate::architecture::{gemma3_text, multimodal};
use crate::error::Result;

/// `model_type: gemma3`.
pub(crate) static GEMMA3: Architecture =
    Architecture { model_type: "gemma3", descriptor: DESCRIPTOR, gguf: None, read };

const DESCRIPTOR: Descriptor = multimodal::within(gemma3_text::DESCRIPTOR);

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let config = gemma3_text::read_text(&multimodal::text_config(json)?, DESCRIPTOR)?;
    let tied = json.flag("tie_word_embeddings", config.tied)?;
    Ok(BaseConfig { tied, model_type: "gemma3".to_owned(), ..config })
}
