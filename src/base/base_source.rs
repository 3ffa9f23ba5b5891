//! The value of `--base`: a model folder, `hub:ORG/NAME[@REV]`, or `pico`.

use super::hub_download::fetch;
use super::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use anyhow::{Context as _, Result, ensure};
use hf_hub::{Repo, RepoType};
use lorakit_model::Base;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where to get a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseSource {
    /// A Hugging Face model folder.
    Folder(PathBuf),
    /// A repository of the Hugging Face Hub.
    Hub {
        /// `ORG/NAME`.
        name: String,
        /// A branch, tag or commit; `main` by default.
        revision: Option<String>,
    },
    /// The base bundled with the binary.
    Pico,
}

impl FromStr for BaseSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(repository) = text.strip_prefix("hub:") else {
            return match text {
                "" => Err("expected a model folder, hub:ORG/NAME[@REV] or pico".to_owned()),
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
    /// Downloads the base where it is not local yet.
    pub fn resolve(&self, context: &CommandContext) -> Result<ResolvedBase> {
        match self {
            Self::Folder(folder) => {
                ensure!(!is_missing_repository(folder), "{0}: no such folder; did you mean hub:{0}?", folder.display());
                Ok(ResolvedBase::Folder { folder: folder.clone(), name: None })
            }
            Self::Hub { name, revision } => {
                let repo = Repo::with_revision(
                    name.clone(),
                    RepoType::Model,
                    revision.clone().unwrap_or_else(|| "main".to_owned()),
                );
                Ok(ResolvedBase::Folder {
                    folder: fetch(&repo, context).with_context(|| self.to_string())?,
                    name: Some(name.clone()),
                })
            }
            Self::Pico => Ok(ResolvedBase::Pico),
        }
    }

    /// Opens the base without its tokenizer.
    pub fn open(&self, context: &CommandContext) -> Result<Base> {
        self.resolve(context)?.base(context)
    }
}

/// Whether a path that does not exist reads like `ORG/NAME`, as other programs take repositories of the Hub.
fn is_missing_repository(path: &Path) -> bool {
    let part = |part: &str| {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts = path.to_str().and_then(|text| text.split_once('/'));
    !path.exists() && parts.is_some_and(|(org, name)| part(org) && part(name))
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
}
