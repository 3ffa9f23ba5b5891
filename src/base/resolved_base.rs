//! A base on this machine: opens its weights, configuration and tokenizer.

use super::pico;
use crate::command_context::CommandContext;
use crate::output::console::Output;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{Adapter, ExpertRecord};
use lorakit_format::gguf::GgufShards;
use lorakit_model::{Base, BaseConfig, BaseOptions, Checkpoint};
use lorakit_task::Tokenizer;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

/// A base on this machine.
pub enum ResolvedBase {
    /// In a folder.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Its name for adapters to record; None: that of the folder.
        name: Option<BaseName>,
        /// Where warnings about its files go.
        output: Output,
    },
    /// In GGUF.
    Gguf(GgufBaseFile),
    /// Bundled with the binary.
    Pico,
}

/// The name of a base for adapters to record.
#[derive(Clone, Debug)]
pub struct BaseName {
    /// The name.
    pub text: String,
    /// Whether it is the base's name on the Hub, and not a path on this machine.
    pub on_hub: bool,
}

impl BaseName {
    /// The name of a repository.
    pub fn on_hub(name: &str) -> Self {
        Self { text: name.to_owned(), on_hub: true }
    }

    fn give(&self, base: Base) -> Base {
        base.with_name(&self.text, self.on_hub)
    }
}

/// A base in GGUF on this machine.
pub struct GgufBaseFile {
    /// The file, or one of several.
    pub file: PathBuf,
    /// The folder of its tokenizer, if one is named.
    pub tokenizer: Option<PathBuf>,
    /// Its name for adapters to record.
    pub name: BaseName,
    /// Where warnings about its files go.
    pub output: Output,
}

impl GgufBaseFile {
    /// The folder of its tokenizer: the named one, or its own where it holds one. None: the tokenizer is in the file.
    pub fn tokenizer_folder(&self) -> Option<&Path> {
        let beside = || self.file.parent().filter(|folder| folder.join("tokenizer.json").is_file());
        self.tokenizer.as_deref().or_else(beside)
    }

    /// Its metadata and tensors.
    pub fn shards(&self) -> Result<GgufShards> {
        Ok(GgufShards::open(&self.file)?)
    }
}

impl ResolvedBase {
    /// Opens its weights, memory-mapped, for inference.
    pub fn base(&self, context: &CommandContext) -> Result<Base> {
        self.base_as(&context.base_options()?, context)
    }

    /// Opens its weights with the given options.
    pub fn base_as(&self, options: &BaseOptions, context: &CommandContext) -> Result<Base> {
        opened(self.open(options)?, context)
    }

    /// Opens its weights with the given options, and reads its tokenizer meanwhile: where weights are rounded, each takes
    /// a large part of the time until a first token.
    pub fn base_and_tokenizer(&self, options: &BaseOptions, context: &CommandContext) -> Result<(Base, Tokenizer)> {
        let (base, tokenizer) = thread::scope(|scope| {
            let tokenizer = scope.spawn(|| self.read_tokenizer());
            (self.open(options), tokenizer.join())
        });
        let base = opened(base?, context)?;
        let tokenizer = tokenizer.unwrap_or_else(|panic| resume_unwind(panic))?;
        self.warn_of(&tokenizer);
        Ok((base, tokenizer))
    }

    /// Its weights as stored.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            Self::Folder { folder, .. } => Ok(Checkpoint::open(folder)?),
            Self::Gguf(base) => Ok(Checkpoint::of_gguf(base.shards()?)?),
            Self::Pico => pico::checkpoint(),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> Result<BaseConfig> {
        match self {
            Self::Folder { folder, .. } => Ok(BaseConfig::read(folder)?),
            Self::Gguf(base) => Ok(BaseConfig::of_gguf(&base.shards()?)?),
            Self::Pico => pico::config(),
        }
    }

    /// Opens its weights as trainable variables, all in memory.
    pub fn trainable(&self, context: &CommandContext) -> Result<Base> {
        self.open(&BaseOptions { trainable: true, ..context.base_options()? })
    }

    fn open(&self, options: &BaseOptions) -> Result<Base> {
        Ok(match self {
            Self::Folder { folder, name: None, .. } => Base::open(folder, options)?,
            Self::Folder { folder, name: Some(name), .. } => name.give(Base::open(folder, options)?),
            Self::Gguf(base) => base.name.give(Base::open_gguf(&base.file, options)?),
            Self::Pico => pico::base(options)?,
        })
    }

    /// The record in its folder, where lorakit trained or merged it.
    pub fn record(&self) -> Result<Option<ExpertRecord>> {
        match self {
            Self::Folder { folder, .. } => Ok(lorakit_fit::record_of_model(folder)?),
            Self::Gguf(_) | Self::Pico => Ok(None),
        }
    }

    /// Refuses an adapter whose file holds other weights of the base than this base has.
    pub fn ensure_own_tensors(&self, adapter: &Adapter) -> Result<()> {
        if adapter.base_tensors().is_empty() {
            return Ok(());
        }
        let (checkpoint, config) = (self.checkpoint()?, self.config()?);
        let weight_of = |module: &str| format!("{module}.weight");
        let has = |name: &str| checkpoint.names().any(|known| known == name);
        for (name, values) in adapter.base_tensors() {
            let is_tied = config.tied && *name == weight_of(config.descriptor.lm_head);
            let is_embedding = is_tied || config.descriptor.embedding_copies().contains(&name.as_str());
            let own = if is_embedding && !has(name) { weight_of(config.descriptor.embedding) } else { name.clone() };
            let found = match has(&own) {
                true => "differs from the base's, and PEFT would load it in its place",
                false => "the base does not have",
            };
            let advice = match name.ends_with(".bias") {
                true => {
                    "was the base trained, or this bias with the adapter? Name that base, or train with bias=\"none\""
                }
                false => {
                    "was the base resized or trained? Name that base, or save the adapter with save_embedding_layers=False"
                }
            };
            ensure!(checkpoint.has_values(&own, values)?, "its file holds a `{name}` that {found}: {advice}");
        }
        Ok(())
    }

    /// Whether its files hold a weight of the head.
    pub fn has_own_head(&self) -> Result<bool> {
        let head = format!("{}.weight", self.config()?.descriptor.lm_head);
        Ok(self.checkpoint()?.names().any(|name| name == head))
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = self.read_tokenizer()?;
        self.warn_of(&tokenizer);
        Ok(tokenizer)
    }

    fn read_tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Self::Folder { folder, .. } => Ok(Tokenizer::open(folder)?),
            Self::Gguf(base) => match base.tokenizer_folder() {
                Some(folder) => Ok(Tokenizer::open(folder)?),
                None => {
                    let tokenizer = Tokenizer::from_gguf(base.shards()?.metadata());
                    tokenizer.with_context(|| base.file.display().to_string())
                }
            },
            Self::Pico => pico::tokenizer(),
        }
    }

    /// Prints what its tokenizer warns about.
    fn warn_of(&self, tokenizer: &Tokenizer) {
        let (place, output) = match self {
            Self::Folder { folder, output, .. } => (folder.as_path(), output),
            Self::Gguf(base) => (base.tokenizer_folder().unwrap_or(&base.file), &base.output),
            Self::Pico => return,
        };
        tokenizer.warnings().iter().for_each(|warning| output.warn(format!("{}: {warning}", place.display())));
    }
}

/// Says what was opened.
fn opened(base: Base, context: &CommandContext) -> Result<Base> {
    base.config().warnings.iter().try_for_each(|warning| context.warn(warning))?;
    let identity = base.identity();
    context.output.detail(format!(
        "base {}: {}, {} parameters, fingerprint {}",
        identity.name,
        identity.architecture,
        base.parameters(),
        identity.fingerprint
    ));
    Ok(base)
}
