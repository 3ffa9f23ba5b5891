//! The text model within a folder of Mistral Small 3.1 and later or Ministral 3, which read images too: Mistral's layers.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::{llama, ministral3, mistral, multimodal};
use crate::error::Result;

/// `model_type: mistral3`.
pub(crate) static MISTRAL3: Architecture =
    Architecture { model_type: "mistral3", descriptor: multimodal::within(llama::DESCRIPTOR), gguf: None, read };

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let text = multimodal::text_config(json)?;
    let config = match text.text("model_type")?.unwrap_or("mistral") {
        // Here transformers does not take a Mistral with `layer_types` for a Ministral.
        "mistral" => mistral::read(&text.without(&["layer_types"]))?,
        "ministral" => mistral::read(&text)?,
        "ministral3" => ministral3::read(&text)?,
        other => {
            return Err(json.error(format!(
                "key `model_type` of `text_config` is `{other}`; supported are mistral, ministral and ministral3"
            )));
        }
    };
    let descriptor = multimodal::within(config.descriptor);
    // A head that differs from the embedding is used, whatever this key says.
    let tied = json.flag("tie_word_embeddings", true)?;
    Ok(BaseConfig { descriptor, tied, model_type: "mistral3".to_owned(), ..config })
}
