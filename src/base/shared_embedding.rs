//! The embedding that an encoder and a decoder share: lorakit and PEFT apply an adapter of it differently.

use lorakit_adapter::Warning;
use lorakit_model::Base;

/// What to know about an adapter of the embedding that the base's encoder and decoder share; none if `adapts` says that its
/// module is not adapted, or the base has no encoder.
pub fn shared_embedding_warning(base: &Base, adapts: impl Fn(&str) -> bool) -> Option<Warning> {
    let descriptor = base.config().descriptor;
    (descriptor.encoder.is_some() && adapts(descriptor.embedding)).then(|| Warning {
        subject: descriptor.embedding.to_owned(),
        text: "lorakit applies its adapter to the tokens of the encoder and of the decoder; PEFT does so once it is merged, and \
               until then its model ignores it: transformers' encoder and decoder keep the embedding as it was"
            .to_owned(),
    })
}
