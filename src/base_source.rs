//! What stands after `--base`: a model folder, `hub:ORG/NAME[@REV]`, or `pico`.

use crate::context::Context;
use crate::pico;
use anyhow::{Context as _, Result};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use lorakit_adapter::ExpertRecord;
use lorakit_model::{Base, Checkpoint, Config, Options};
use lorakit_task::Tokenizer;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a base is to be had. The set is closed; another kind of place is one more variant here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseSource {
    /// A Hugging Face model folder.
    Folder(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub {
        /// `ORG/NAME`.
        name: String,
        /// A branch, tag or commit; `main` where none is given.
        revision: Option<String>,
    },
    /// The base inside the binary.
    Pico,
}

impl FromStr for BaseSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(repository) = text.strip_prefix("hub:") else {
            return match text {
                "" => Err("an empty text names no base".to_owned()),
                "pico" => Ok(Self::Pico),
                folder => Ok(Self::Folder(folder.into())),
            };
        };
        let (name, revision) = match repository.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (repository, None),
        };
        match name.split_once('/') {
            Some((org, rest)) if !org.is_empty() && !rest.is_empty() && !rest.contains('/') && revision != Some("") => {
                Ok(Self::Hub { name: name.to_owned(), revision: revision.map(str::to_owned) })
            }
            _ => Err("expected hub:ORG/NAME or hub:ORG/NAME@REV".to_owned()),
        }
    }
}

impl fmt::Display for BaseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Hub { name, revision: Some(revision) } => write!(f, "hub:{name}@{revision}"),
            Self::Hub { name, revision: None } => write!(f, "hub:{name}"),
            Self::Pico => f.write_str("pico"),
        }
    }
}

impl BaseSource {
    /// Fetches what has to be fetched; after this the base is a folder here.
    pub fn locate(&self, context: &Context) -> Result<Located> {
        match self {
            Self::Folder(folder) => Ok(Located::Folder { folder: folder.clone(), name: None }),
            Self::Hub { name, revision } => {
                let repo = Repo::with_revision(
                    name.clone(),
                    RepoType::Model,
                    revision.clone().unwrap_or_else(|| "main".to_owned()),
                );
                Ok(Located::Folder {
                    folder: fetch(&repo, context).with_context(|| self.to_string())?,
                    name: Some(name.clone()),
                })
            }
            Self::Pico => Ok(Located::Pico),
        }
    }

    /// The base alone, for what needs no text.
    pub fn open(&self, context: &Context) -> Result<Base> {
        self.locate(context)?.base(context)
    }
}

/// A base that is here.
pub enum Located {
    /// In a folder.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the base is called, where its folder does not say.
        name: Option<String>,
    },
    /// In the binary.
    Pico,
}

impl Located {
    /// Its weights, mapped.
    pub fn base(&self, context: &Context) -> Result<Base> {
        self.base_as(&context.base_options()?, context)
    }

    /// The same, opened as the options say.
    pub fn base_as(&self, options: &Options, context: &Context) -> Result<Base> {
        let base = self.opened(options)?;
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

    /// Its weights as they lie in their files.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            Self::Folder { folder, .. } => Checkpoint::open(folder),
            Self::Pico => pico::checkpoint(),
        }
    }

    /// Its dimensions and constants.
    pub fn config(&self) -> Result<Config> {
        match self {
            Self::Folder { folder, .. } => Config::read(folder),
            Self::Pico => pico::config(),
        }
    }

    /// Its weights as variables, all of them in memory.
    pub fn trainable(&self, context: &Context) -> Result<Base> {
        self.opened(&Options { trainable: true, ..context.base_options()? })
    }

    fn opened(&self, options: &Options) -> Result<Base> {
        Ok(match self {
            Self::Folder { folder, name: None } => Base::open(folder, options)?,
            Self::Folder { folder, name: Some(name) } => Base::open(folder, options)?.named(name),
            Self::Pico => pico::base(options)?,
        })
    }

    /// The record in its folder, where lorakit trained or merged it.
    pub fn record(&self) -> Result<Option<ExpertRecord>> {
        match self {
            Self::Folder { folder, .. } => lorakit_fit::record_of_model(folder),
            Self::Pico => Ok(None),
        }
    }

    /// Its tokenizer.
    pub fn vocabulary(&self) -> Result<Tokenizer> {
        match self {
            Self::Folder { folder, .. } => Ok(Tokenizer::open(folder)?),
            Self::Pico => pico::vocabulary(),
        }
    }
}

/// Puts the files that make a base into the hub's own cache, where other tools find them too, and returns their folder.
fn fetch(repo: &Repo, context: &Context) -> Result<PathBuf> {
    let api = ApiBuilder::from_env().with_progress(!context.output.quiet).build()?.repo(repo.clone());
    let files = match api.info() {
        Ok(info) => info.siblings.into_iter().map(|file| file.rfilename).filter(|name| is_of_a_base(name)).collect(),
        Err(error) => return cached(repo).with_context(|| {
            format!(
                "the hub does not answer ({error}), and no copy is in its cache; is the name right, and are you online?"
            )
        }),
    };
    download(&api, files)
}

fn download(api: &ApiRepo, files: Vec<String>) -> Result<PathBuf> {
    let mut folder = None;
    for name in files {
        let path = api.get(&name).with_context(|| format!("{name} cannot be fetched"))?;
        if name == "config.json" {
            folder = path.parent().map(PathBuf::from);
        }
    }
    folder.context("the repository has no config.json; is it a model?")
}

/// The folder of an earlier download.
fn cached(repo: &Repo) -> Option<PathBuf> {
    Some(Cache::from_env().repo(repo.clone()).get("config.json")?.parent()?.to_owned())
}

/// Whether a file of a repository belongs to the base: configuration, tokenizer, and weights under their usual names
/// (some repositories hold the same weights again in other formats).
fn is_of_a_base(name: &str) -> bool {
    let weights = || {
        name == "model.safetensors"
            || name == "model.safetensors.index.json"
            || (name.starts_with("model-") && name.ends_with(".safetensors"))
    };
    matches!(
        name,
        "config.json"
            | "generation_config.json"
            | "tokenizer.json"
            | "tokenizer_config.json"
            | "special_tokens_map.json"
    ) || weights()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_base_is_printed_as_it_is_typed() {
        for text in ["models/phi", "hub:microsoft/phi-2", "hub:microsoft/phi-2@v1", "pico"] {
            assert_eq!(text.parse::<BaseSource>().unwrap().to_string(), text);
        }
        for text in ["", "hub:", "hub:phi-2", "hub:/x", "hub:a/b/c", "hub:a/b@"] {
            assert!(text.parse::<BaseSource>().is_err(), "{text}");
        }
    }

    #[test]
    fn of_a_repository_only_the_base_is_fetched() {
        assert!(["config.json", "model.safetensors", "model-00001-of-00002.safetensors"].into_iter().all(is_of_a_base));
        assert!(
            !["pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "README.md"]
                .into_iter()
                .any(is_of_a_base)
        );
    }
}
