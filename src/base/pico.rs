//! pico: the bundled base model, a small Mistral that `scripts/pretrain_pico.sh` trains.

use anyhow::Result;
use lorakit_format::atomic::{create_folder, write_file};
use lorakit_format::mmap::FileBytes;
use lorakit_model::weights::SINGLE_FILE;
use lorakit_model::{Base, BaseConfig, BaseOptions, Checkpoint};
use lorakit_task::Tokenizer;
use std::path::Path;

const CONFIG: &str = include_str!("../pico/config.json");
const TOKENIZER: &[u8] = include_bytes!("../pico/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../pico/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../pico/model.safetensors");

/// Opens pico.
pub fn base(options: &BaseOptions) -> Result<Base> {
    Ok(Base::from_bytes("pico", CONFIG, FileBytes::Static(WEIGHTS), options)?)
}

/// Its weights as stored.
pub fn checkpoint() -> Result<Checkpoint> {
    Ok(Checkpoint::from_bytes("pico", FileBytes::Static(WEIGHTS))?)
}

/// Its configuration.
pub fn config() -> Result<BaseConfig> {
    Ok(BaseConfig::parse(CONFIG, "pico")?)
}

/// Its character-level tokenizer.
pub fn tokenizer() -> Result<Tokenizer> {
    Ok(Tokenizer::from_bytes(TOKENIZER, "</s>")?)
}

/// Writes it as a Hugging Face model folder.
pub fn write(folder: &Path) -> Result<()> {
    create_folder(folder, |folder| {
        write_model_files(folder)?;
        Ok(write_file(&folder.join(SINGLE_FILE), WEIGHTS)?)
    })
}

/// Writes the files other than the weights to `folder`, which exists.
pub fn write_model_files(folder: &Path) -> Result<()> {
    let files: [(&str, &[u8]); 3] = [
        ("config.json", CONFIG.as_bytes()),
        ("tokenizer.json", TOKENIZER),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ];
    Ok(files.into_iter().try_for_each(|(name, bytes)| write_file(&folder.join(name), bytes))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    /// Libraries made for pico hold this fingerprint.
    #[test]
    fn its_fingerprint_never_changes() {
        let base = super::base(&lorakit_model::BaseOptions::default()).unwrap();
        assert_eq!(base.identity().fingerprint, "f28d6c2814da94ccd1374d3983a2bb524d2d8a4de0658406bfc5ecfb0ad7166d");
    }
}
