//! Adapters as they are named on the command line: `[NAME=]DIR`, a GGUF file, or `hub:`.

use crate::adding::refusal::Refusal;
use crate::args::usage;
use crate::base::base_source::is_gguf;
use crate::command_context::CommandContext;
use crate::hub::hub_adapters::{self, HubAdapter};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `[NAME=]DIR` as typed.
#[derive(Clone, Debug)]
pub struct NamedFolder {
    /// The given name, or that of the folder or the GGUF file.
    pub name: String,
    /// The folder, or a GGUF file.
    pub folder: PathBuf,
    /// Whether the name was given.
    pub given: bool,
}

impl FromStr for NamedFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A path may contain an equals sign: what exists is a path.
        match text.split_once('=') {
            Some((name, folder)) if !Path::new(text).exists() && !name.contains(['/', '\\']) => match (name, folder) {
                ("", _) | (_, "") => Err("expected [NAME=]DIR".to_owned()),
                _ => Ok(Self { name: name.to_owned(), folder: folder.into(), given: true }),
            },
            _ => {
                let folder = PathBuf::from(text);
                // A symlink keeps its own name. `.` and `DIR/..` have none, but the folder they resolve to has.
                let named = match folder.file_name() {
                    Some(_) => folder.clone(),
                    None => folder.canonicalize().unwrap_or_else(|_| folder.clone()),
                };
                let name = if is_gguf_file(&named) { named.file_stem() } else { named.file_name() };
                let name = name.ok_or_else(|| format!("`{text}` has no folder name; give NAME={text}"))?;
                Ok(Self { name: name.to_string_lossy().into_owned(), folder, given: false })
            }
        }
    }
}

impl NamedFolder {
    /// The folder itself, or those that are downloaded for `hub:`, where a refusal stands for one that cannot be.
    pub fn local(&self, context: &CommandContext) -> Result<Vec<Result<Self, Refusal>>> {
        let Some(spec) = self.folder.to_str().and_then(|folder| folder.strip_prefix("hub:")) else {
            return Ok(vec![Ok(self.clone())]);
        };
        let adapters = hub_adapters::fetch(spec, context)?;
        usage::ensure(!self.given || adapters.len() == 1, || {
            format!("{}=: one name for {} adapters; leave it out", self.name, adapters.len())
        })?;
        let named = |HubAdapter { name, repository, path }: HubAdapter| {
            let name = if self.given { self.name.clone() } else { name };
            match path {
                Ok(folder) => Ok(Self { name, folder, given: self.given }),
                Err(error) => Err(Refusal { name, folder: repository.into(), error }),
            }
        };
        Ok(adapters.into_iter().map(named).collect())
    }
}

/// Whether a path is that of a GGUF file.
pub(super) fn is_gguf_file(path: &Path) -> bool {
    is_gguf(path) && !path.is_dir()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_default_to_those_of_folders() {
        let of = |text: &str| text.parse::<NamedFolder>().map(|named| (named.name, named.folder));
        assert_eq!(of("runs/boolq").unwrap(), ("boolq".to_owned(), "runs/boolq".into()));
        assert_eq!(of("runs/boolq/").unwrap(), ("boolq".to_owned(), "runs/boolq/".into()));
        assert_eq!(of("b=runs/x").unwrap(), ("b".to_owned(), "runs/x".into()));
        assert_eq!(of("runs/lr=1/x").unwrap().0, "x");
        assert_eq!(of("runs/boolq.gguf").unwrap(), ("boolq".to_owned(), "runs/boolq.gguf".into()));
        assert!(of("=x").is_err() && of("b=").is_err() && of("/").is_err());
        assert_ne!(of(".").unwrap().0, ".", "the folder that it means");
    }

    #[cfg(unix)]
    #[test]
    fn symlinks_keep_their_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("checkpoint-900"), folder.path().join("boolq"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let named: NamedFolder = link.display().to_string().parse().unwrap();
        assert_eq!((named.name.as_str(), named.folder), ("boolq", link));
    }
}
