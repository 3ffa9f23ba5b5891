//! The text model within a folder of a model that reads images too. What is of images stays in its file and is not used.

use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::Descriptor;
use crate::error::Result;
use lorakit_adapter::IMAGE_MODULES;

/// The layers of a text model where such a folder has them.
pub(crate) const fn within(text: Descriptor) -> Descriptor {
    Descriptor {
        embedding: "model.language_model.embed_tokens",
        layers: "model.language_model.layers",
        final_norm: "model.language_model.norm",
        unused: &IMAGE_MODULES,
        ..text
    }
}

/// The keys of the text model.
pub(crate) fn text_config(json: &ConfigKeys) -> Result<ConfigKeys> {
    json.nested("text_config")?.ok_or_else(|| json.error("key `text_config` is missing"))
}
