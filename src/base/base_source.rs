//! The value of `--base`: a model folder, a GGUF file, `hub:ORG/NAME[@REV][/FILE.gguf]`, or `pico`.

use super::adapter_folder::not_a_base;
use super::hub_files::{BaseFiles, GgufFiles};
use super::resolved_base::{BaseName, GgufBaseFile, ResolvedBase};
use crate::args::usage;
use crate::command_context::CommandContext;
use crate::hub::repository::{Repository, RepositoryKind};
use crate::hub::snapshot::snapshot;
use anyhow::{Result, bail, ensure};
use lorakit_adapter::{BaseIdentity, CONFIG_FILE};
use lorakit_format::non_finite_json::non_finite_as_null;
use lorakit_model::Base;
use lorakit_model::weights::{INDEX_FILE, SINGLE_FILE};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where to get a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseSource {
    /// A Hugging Face model folder.
    Folder(PathBuf),
    /// A GGUF file, or the first of several.
    Gguf(PathBuf),
    /// A repository of the Hugging Face Hub.
    Hub(Repository),
    /// A GGUF file of such a repository.
    HubGguf(Repository, String),
    /// The base bundled with the binary.
    Pico,
}

impl FromStr for BaseSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(repository) = text.strip_prefix("hub:") else {
            return match text {
                "" => Err("expected a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf] or pico".to_owned()),
                "pico" => Ok(Self::Pico),
                file if is_gguf(Path::new(file)) && !Path::new(file).is_dir() => Ok(Self::Gguf(file.into())),
                folder => Ok(Self::Folder(folder.into())),
            };
        };
        match Repository::parse(RepositoryKind::Model, repository) {
            Some((repository, "")) => Ok(Self::Hub(repository)),
            Some((repository, file)) if is_gguf(Path::new(file)) => Ok(Self::HubGguf(repository, file.to_owned())),
            _ => Err("expected hub:ORG/NAME or hub:ORG/NAME@REV, or either with /FILE.gguf".to_owned()),
        }
    }
}

impl fmt::Display for BaseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Gguf(file) => write!(f, "{}", file.display()),
            Self::Hub(repository) => repository.fmt(f),
            Self::HubGguf(repository, file) => write!(f, "{repository}/{file}"),
            Self::Pico => f.write_str("pico"),
        }
    }
}

impl BaseSource {
    /// The base that a library records, where its name tells where it is: the bundled base, a folder or file that exists, or
    /// a repository of the Hub that `is_cached`. One that was never downloaded may be another model: folders that were
    /// trained on have the name of what they come from. Of a repository with GGUF files the name does not tell which.
    pub fn of_recorded(base: &BaseIdentity, is_cached: impl Fn(&Repository) -> bool) -> Option<Self> {
        let name = &base.name;
        if base.on_hub == Some(true) {
            let is_gguf = base.form.as_deref().is_some_and(|form| form.starts_with("GGUF"));
            let (repository, _) = Repository::parse(RepositoryKind::Model, name).filter(|(_, file)| file.is_empty())?;
            return (!is_gguf && is_cached(&repository)).then_some(Self::Hub(repository));
        }
        (name == "pico" || Path::new(name).exists()).then(|| name.parse().ok()).flatten()
    }

    /// Downloads the base where it is not local yet.
    pub fn resolve(&self, context: &CommandContext) -> Result<ResolvedBase> {
        let is_gguf = matches!(self, Self::Gguf(_) | Self::HubGguf(..));
        usage::ensure(is_gguf || context.tokenizer.is_none(), || {
            "--tokenizer is for a base in GGUF: other bases have a tokenizer of their own".to_owned()
        })?;
        match self {
            Self::Gguf(file) => {
                let path = || BaseName { text: file.display().to_string(), on_hub: false };
                Ok(gguf(file.clone(), given_name(context).unwrap_or_else(path), context))
            }
            Self::HubGguf(repository, file) => {
                let folder = snapshot(repository, &GgufFiles::of(file), context)?;
                let name = given_name(context).unwrap_or_else(|| BaseName::on_hub(&repository.name));
                Ok(gguf(folder.join(file), name, context))
            }
            Self::Folder(folder) => {
                ensure!(!is_missing_repository(folder), "{0}: no such folder; did you mean hub:{0}?", folder.display());
                refuse_gguf_only(folder)?;
                refuse_adapter(folder)?;
                let path = || BaseName { text: folder.display().to_string(), on_hub: false };
                let recorded = || hub_name(folder).map(|name| BaseName::on_hub(&name));
                let name = given_name(context).or_else(recorded).or_else(|| folder.file_name().map(|_| path()));
                Ok(ResolvedBase::Folder { folder: folder.clone(), name, output: context.output })
            }
            Self::Hub(repository) => Ok(ResolvedBase::Folder {
                folder: snapshot(repository, &BaseFiles { repository }, context)?,
                name: given_name(context).or_else(|| Some(BaseName::on_hub(&repository.name))),
                output: context.output,
            }),
            Self::Pico => {
                usage::ensure(context.base_name.is_none(), || "--base-name: pico has a name of its own".to_owned())?;
                Ok(ResolvedBase::Pico)
            }
        }
    }

    /// Opens the base without its tokenizer.
    pub fn open(&self, context: &CommandContext) -> Result<Base> {
        self.resolve(context)?.base(context)
    }
}

/// The name of `--base-name`.
fn given_name(context: &CommandContext) -> Option<BaseName> {
    context.base_name.as_deref().map(BaseName::on_hub)
}

/// A base in GGUF, with the tokenizer of `--tokenizer` if that is given.
fn gguf(file: PathBuf, name: BaseName, context: &CommandContext) -> ResolvedBase {
    ResolvedBase::Gguf(GgufBaseFile { file, tokenizer: context.tokenizer.clone(), name, output: context.output })
}

/// Whether a path has the extension of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Refuses a folder whose only weights are in GGUF: it may hold several quantizations of one model.
fn refuse_gguf_only(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let is_weights = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
    match paths.iter().filter(|path| is_gguf(path)).min() {
        Some(file) if !paths.iter().any(is_weights) => {
            bail!("{}: its weights are in GGUF; name one file: --base {}", folder.display(), file.display())
        }
        _ => Ok(()),
    }
}

/// Refuses the folder of an adapter. One may stand beside the weights of a base.
fn refuse_adapter(folder: &Path) -> Result<()> {
    let has = |file: &str| folder.join(file).exists();
    let is_adapter = has(CONFIG_FILE) && !has(SINGLE_FILE) && !has(INDEX_FILE);
    ensure!(!is_adapter, "{}: {}", folder.display(), not_a_base(folder));
    Ok(())
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

/// The name on the Hub that a folder's config.json records.
fn hub_name(folder: &Path) -> Option<String> {
    let text = lorakit_format::read_text(&folder.join("config.json")).ok()?;
    let config: Value = serde_json::from_slice(&non_finite_as_null(text.as_bytes())).ok()?;
    let name = config["_name_or_path"].as_str()?.to_owned();
    let repository = Repository::parse(RepositoryKind::Model, &name);
    let is_name = repository.is_some_and(|(repository, _)| repository.name == name) && !Path::new(&name).exists();
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_recorded_base_is_found_where_its_name_tells_where_it_is() {
        let folder = env!("CARGO_MANIFEST_DIR");
        for (name, on_hub, form, found) in [
            ("pico", None, None, Some("pico")),
            ("pico", Some(false), None, Some("pico")),
            ("acme/tiny", Some(true), None, Some("hub:acme/tiny")),
            ("acme/tiny", Some(true), Some("GGUF Q4_1 F32"), None),
            ("acme/tiny", Some(false), None, None),
            ("acme/other", Some(true), None, None),
            (folder, None, None, Some(folder)),
        ] {
            let base = BaseIdentity {
                name: name.to_owned(),
                on_hub,
                architecture: "llama".to_owned(),
                dimensions: BTreeMap::new(),
                fingerprint: String::new(),
                form: form.map(str::to_owned),
            };
            let cached = |repository: &Repository| repository.name == "acme/tiny";
            let source = BaseSource::of_recorded(&base, cached).map(|source| source.to_string());
            assert_eq!(source.as_deref(), found, "{name}");
        }
    }

    #[test]
    fn a_base_is_printed_as_it_is_typed() {
        for text in
            ["models/phi", "m.gguf", "hub:microsoft/phi-2", "hub:microsoft/phi-2@v1", "hub:a/b/c/d.gguf", "pico"]
        {
            assert_eq!(text.parse::<BaseSource>().unwrap().to_string(), text);
        }
        for text in ["", "hub:", "hub:phi-2", "hub:/x", "hub:a/b/c", "hub:a/b@"] {
            assert!(text.parse::<BaseSource>().is_err(), "{text}");
        }
    }
}
