//! `library add`: adds PEFT adapter folders to a library.

use crate::args::usage;
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::hub::hub_adapters::{self, CachedAdapter};
use crate::output::text_table::table;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{Adapter, ExpertRecord, Library};
use lorakit_fit::{lock, lock_for, record_beside};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The arguments of `library add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// Library; created if it does not exist
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Base model of the adapters; it is recorded, and every adapter is checked against it
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// Adapter folders, hub:ORG/NAME[@REV][/FOLDER], or hub:ORG/PATTERN with * for any text; the name of an expert
    /// defaults to that of its folder or repository
    #[arg(required = true, value_name = "[NAME=]DIR")]
    adapters: Vec<NamedFolder>,
}

/// `[NAME=]DIR` as typed.
#[derive(Clone, Debug)]
pub struct NamedFolder {
    /// The given name, or that of the folder.
    pub name: String,
    /// The folder.
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
                let name = named.file_name().ok_or_else(|| format!("`{text}` has no folder name; give NAME={text}"))?;
                Ok(Self { name: name.to_string_lossy().into_owned(), folder, given: false })
            }
        }
    }
}

impl NamedFolder {
    /// The folder itself, or those that are downloaded for `hub:`.
    fn local(&self, context: &CommandContext) -> Result<Vec<Self>> {
        let Some(spec) = self.folder.to_str().and_then(|folder| folder.strip_prefix("hub:")) else {
            return Ok(vec![self.clone()]);
        };
        let adapters = hub_adapters::fetch(spec, context)?;
        usage::ensure(!self.given || adapters.len() == 1, || {
            format!("{}=: one name for {} adapters; leave it out", self.name, adapters.len())
        })?;
        let named = |adapter: CachedAdapter| Self {
            name: if self.given { self.name.clone() } else { adapter.name },
            folder: adapter.folder,
            given: self.given,
        };
        Ok(adapters.into_iter().map(named).collect())
    }
}

/// An adapter to add.
pub struct Candidate {
    /// The name of the expert.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The adapter.
    pub adapter: Adapter,
    /// Its record, if it has one.
    pub record: Option<ExpertRecord>,
}

/// Adds all adapters, or none if one is refused.
pub fn run(args: &AddArgs, context: &CommandContext) -> Result<()> {
    let folders = args.adapters.iter().map(|named| named.local(context)).collect::<Result<Vec<_>>>()?;
    let candidates = folders.iter().flatten().map(Candidate::read).collect::<Result<Vec<_>>>()?;
    add_all(&args.library, args.base.as_ref(), &candidates, context)
}

/// Adds candidates to the library at `root`, all or none, and reports them.
pub fn add_all(
    root: &Path,
    base: Option<&BaseSource>,
    candidates: &[Candidate],
    context: &CommandContext,
) -> Result<()> {
    let mut names = BTreeSet::new();
    if let Some(twice) = candidates.iter().find(|candidate| !names.insert(&candidate.name)) {
        bail!("two adapters are named `{}`; rename one: NAME={}", twice.name, twice.folder.display());
    }
    let base = base.map(|base| base.open(context)).transpose()?;
    for Candidate { folder, adapter, .. } in candidates {
        let check = || base.as_ref().map_or(Ok(()), |base| adapter.check_against(&base.modules()));
        check().with_context(|| folder.display().to_string())?;
        adapter.warnings().iter().try_for_each(|warning| context.warn(format!("{}: {warning}", folder.display())))?;
        if let Some(base) = &base {
            warn_of_other_base(folder, adapter, &base.identity().name, context)?;
        }
    }
    let library = Library::open_or_create(root, base.as_ref().map(|base| base.identity()))?;
    let _lock = match &base {
        Some(base) => lock_for(&library, base, context)?,
        None => lock(&library, context)?,
    };
    ensure_compatible(&library, candidates)?;
    let within = |candidate: &Candidate| match &base {
        Some(base) => candidate.adapter.clone().with_target_names(&base.modules()),
        None => candidate.adapter.clone(),
    };
    let adapters: Vec<Adapter> = candidates.iter().map(within).collect();
    let entry = |(candidate, adapter)| {
        let Candidate { name, record, .. }: &Candidate = candidate;
        (name.as_str(), adapter, record.as_ref())
    };
    library.add_all(&candidates.iter().zip(&adapters).map(entry).collect::<Vec<_>>())?;
    report(root, candidates, context)
}

impl Candidate {
    fn read(named: &NamedFolder) -> Result<Self> {
        Ok(Self {
            name: named.name.clone(),
            folder: named.folder.clone(),
            adapter: Adapter::read(&named.folder)?,
            record: record_beside(&named.folder)?,
        })
    }
}

/// Warns of an adapter whose config names another base. The name is a hint only: folders get renamed, and a base is
/// identified by its shapes.
fn warn_of_other_base(folder: &Path, adapter: &Adapter, base: &str, context: &CommandContext) -> Result<()> {
    let last = |name: &str| name.trim_end_matches('/').rsplit(['/', '\\']).next().map(str::to_lowercase);
    match &adapter.metadata().base_model {
        Some(named) if last(named) != last(base) => context.warn(format!(
            "{}: base_model_name_or_path is `{named}`, but it is added for `{base}`, whose modules match",
            folder.display()
        )),
        _ => Ok(()),
    }
}

/// Refuses existing names, adapters of another base, and adapters whose widths differ from the others.
fn ensure_compatible(library: &Library, candidates: &[Candidate]) -> Result<()> {
    let mut reference = match library.expert_names()?.first() {
        Some(first) => Some((format!("the expert `{first}`"), library.adapter(first)?)),
        None => None,
    };
    for Candidate { name, folder, adapter, record } in candidates {
        let folder = folder.display();
        ensure!(
            !library.contains(name),
            "{}: expert `{name}` already exists; use another name (NAME={folder}), or remove it with `library rm`",
            library.root().display(),
        );
        if let (Some(trained), Some(base)) =
            (record.as_ref().and_then(|record| record.base_fingerprint.as_ref()), library.base())
        {
            ensure!(
                *trained == base.fingerprint,
                "{folder}: trained on a base with fingerprint {trained}, but the library's base `{}` has {}",
                base.name,
                base.fingerprint
            );
        }
        match &reference {
            Some((other, like)) => {
                ensure_same_widths(adapter, like).with_context(|| format!("{folder} and {other}"))?
            }
            None => reference = Some((folder.to_string(), adapter.clone())),
        }
    }
    Ok(())
}

/// Refuses adapters whose common modules differ in width: they are of different bases.
fn ensure_same_widths(adapter: &Adapter, other: &Adapter) -> Result<()> {
    for (path, update) in adapter.modules() {
        let Some(like) = other.modules().get(path) else { continue };
        let (own, others) = ([update.input(), update.output()], [like.input(), like.output()]);
        ensure!(
            own == others,
            "module `{path}` is {own:?} in one and {others:?} in the other [input, output]; a library has one base"
        );
    }
    Ok(())
}

fn report(root: &Path, candidates: &[Candidate], context: &CommandContext) -> Result<()> {
    let added = |Candidate { name, folder, adapter, .. }: &Candidate| {
        let (modules, parameters) = (adapter.modules().len(), adapter.parameters());
        json!({ "name": name, "from": folder, "modules": modules, "parameters": parameters })
    };
    let document = json!({ "library": root, "added": candidates.iter().map(added).collect::<Vec<_>>() });
    context.output.result(&document, || {
        let line = |Candidate { name, folder, adapter, .. }: &Candidate| {
            let (modules, parameters) = (adapter.modules().len(), adapter.parameters());
            vec![name.clone(), modules.to_string(), parameters.to_string(), folder.display().to_string()]
        };
        table(["added", "modules", "parameters", "from"], candidates.iter().map(line))
    })
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
