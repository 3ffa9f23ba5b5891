//! Adapters that are to be added to a library: read, checked against the base, the library and each other.

use crate::args::usage;
use crate::base::base_source::{BaseSource, is_gguf};
use crate::base::resolved_base::ResolvedBase;
use crate::base::shared_embedding::shared_embedding_warning;
use crate::command_context::CommandContext;
use crate::commands::shared_a_warning;
use crate::hub::hub_adapters::{self, CachedAdapter};
use anyhow::{Context as _, Error, Result, bail, ensure};
use lorakit_adapter::{Adapter, BaseIdentity, DenseAdapter, ExpertRecord, Library, OpaqueRecord, Warning};
use lorakit_fit::conversion::{Conversion, convert};
use lorakit_fit::record_beside;
use lorakit_model::Base;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::{self, Display};
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
    /// The folder itself, or those that are downloaded for `hub:`.
    pub fn local(&self, context: &CommandContext) -> Result<Vec<Self>> {
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
    /// What its conversion took away, if it was converted.
    pub conversion: Option<Conversion>,
}

/// The base that adapters are checked against.
pub struct OpenBase {
    /// Where it is.
    pub resolved: ResolvedBase,
    /// The base.
    pub base: Base,
}

impl OpenBase {
    /// Opens a base.
    pub fn open(source: &BaseSource, context: &CommandContext) -> Result<Self> {
        let resolved = source.resolve(context)?;
        let base = resolved.base(context)?;
        Ok(Self { resolved, base })
    }
}

/// An adapter that is not added, and why.
pub struct Refusal {
    /// The name that the expert would have had.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Why.
    pub error: Error,
}

/// Adapters that were accepted so far, and those that were refused.
#[derive(Default)]
pub struct Candidates {
    /// Accepted.
    pub accepted: Vec<Candidate>,
    /// Refused.
    pub refused: Vec<Refusal>,
}

/// Whether a path is that of a GGUF file.
fn is_gguf_file(path: &Path) -> bool {
    is_gguf(path) && !path.is_dir()
}

impl Candidate {
    /// Reads an adapter folder, whatever form its weights are in, or a GGUF adapter of `base`.
    pub fn read(named: &NamedFolder, base: Option<&BaseIdentity>) -> Result<Self> {
        Ok(Self {
            name: named.name.clone(),
            folder: named.folder.clone(),
            adapter: match is_gguf_file(&named.folder) {
                true => Adapter::read_gguf(&named.folder, base)?,
                false => Adapter::read(&named.folder)?,
            },
            record: record_beside(&named.folder)?,
            conversion: None,
        })
    }

    /// Reads an adapter folder, and truncates what has full rank to `rank`; what it changes in an image encoder is left out
    /// first if `skip_image_encoder`.
    pub fn convert(
        named: &NamedFolder,
        OpenBase { resolved, base }: &OpenBase,
        rank: usize,
        skip_image_encoder: bool,
    ) -> Result<Self> {
        if is_gguf_file(&named.folder) {
            return Self::read(named, Some(base.identity()));
        }
        let dense = DenseAdapter::read(&named.folder)?;
        if dense.is_low_rank() {
            return Self::read(named, Some(base.identity()));
        }
        let folder = || named.folder.display().to_string();
        let text = match skip_image_encoder {
            true => dense.without_image_encoder(),
            false => dense.ensure_no_image_encoder().map(|()| dense),
        };
        let dense = text.with_context(folder)?.with_text_model_paths_of(&base.adaptable_modules());
        if dense.is_low_rank() {
            let (name, folder, record) = (named.name.clone(), named.folder.clone(), record_beside(&named.folder)?);
            return Ok(Self { name, folder, adapter: dense.low_rank().clone(), record, conversion: None });
        }
        let converted = convert(&dense, base, &resolved.checkpoint()?, rank);
        let (adapter, conversion) = converted.with_context(folder)?;
        let settings = OpaqueRecord::new(&json!({ "converted": conversion }))?;
        let record = ExpertRecord {
            settings_sha256: settings.sha256(),
            settings,
            base_fingerprint: Some(base.identity().fingerprint.clone()),
            base_form: base.identity().form.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ExpertRecord::default()
        };
        let (name, folder) = (named.name.clone(), named.folder.clone());
        Ok(Self { name, folder, adapter, record: Some(record), conversion: Some(conversion) })
    }
}

impl Candidate {
    /// Leaves out what the adapter changes in an image encoder.
    fn leave_out_image_encoder(&mut self) -> Result<()> {
        let text = self.adapter.clone().without_image_encoder();
        self.adapter = text.with_context(|| self.folder.display().to_string())?;
        Ok(())
    }
}

impl Candidates {
    /// Leaves out what adapters change in an image encoder; refuses those that change nothing else.
    pub fn leave_out_image_encoders(&mut self) {
        self.retain(Candidate::leave_out_image_encoder);
    }

    /// Reads all folders.
    pub fn read(folders: &[NamedFolder], read: impl Fn(&NamedFolder) -> Result<Candidate>) -> Self {
        let mut all = Self::default();
        for named in folders {
            match read(named) {
                Ok(candidate) => all.accepted.push(candidate),
                Err(error) => {
                    all.refused.push(Refusal { name: named.name.clone(), folder: named.folder.clone(), error });
                }
            }
        }
        all
    }

    /// Refuses those that `check` finds an error in; it is called in order.
    pub fn retain(&mut self, mut check: impl FnMut(&mut Candidate) -> Result<()>) {
        for mut candidate in std::mem::take(&mut self.accepted) {
            match check(&mut candidate) {
                Ok(()) => self.accepted.push(candidate),
                Err(error) => {
                    let Candidate { name, folder, .. } = candidate;
                    self.refused.push(Refusal { name, folder, error });
                }
            }
        }
    }

    /// Fails if any was refused, with every reason, or under `skip` if all were.
    pub fn ensure_accepted(&mut self, skip: bool) -> Result<()> {
        if self.refused.is_empty() || (skip && !self.accepted.is_empty()) {
            return Ok(());
        }
        let (refused, all) = (self.refused.len(), self.refused.len() + self.accepted.len());
        if all == 1
            && let Some(Refusal { error, .. }) = self.refused.pop()
        {
            return Err(error);
        }
        let lines: Vec<String> = self.refused.iter().map(|refusal| format!("  {refusal}")).collect();
        let hint = if skip { "" } else { "; --skip-refused takes the others" };
        bail!("{refused} of {all} adapters were refused, and nothing was added{hint}:\n{}", lines.join("\n"))
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {:#}", self.name, self.error)
    }
}

/// Checks an adapter against its base: modules, widths, and what its file holds of the base itself. What has
/// other paths in another form of the base gets the base's.
pub fn check_base(candidate: &mut Candidate, OpenBase { resolved, base }: &OpenBase) -> Result<()> {
    let (modules, folder) = (base.adaptable_modules(), candidate.folder.display().to_string());
    let folder = || folder.clone();
    candidate.adapter = candidate.adapter.clone().with_modules_of(&modules).with_context(folder)?;
    candidate.adapter.check_against(&modules).with_context(folder)?;
    resolved.ensure_own_tensors(&candidate.adapter).with_context(folder)
}

/// The share of a converted adapter below which most of it is lost.
const LITTLE: f64 = 0.5;

/// Prints what reading an adapter warned about, and that its config names another base. The name is a hint only: folders
/// get renamed, and a base is identified by its shapes.
pub fn print_warnings(candidate: &Candidate, base: Option<&Base>, context: &CommandContext) -> Result<()> {
    let (folder, adapter) = (candidate.folder.display(), &candidate.adapter);
    let warn = |warning: &Warning| context.warn(format!("{folder}: {warning}"));
    adapter.warnings().iter().try_for_each(warn)?;
    if let Some(conversion) = candidate.conversion.as_ref().filter(|conversion| conversion.retained() < LITTLE) {
        context.warn(format!(
            "{folder}: at rank {} only {:.0} % of its changes are retained, by their squared norms; use a higher rank",
            conversion.rank,
            100.0 * conversion.retained()
        ))?;
    }
    let adapts = |module: &str| adapter.modules().contains_key(module);
    base.and_then(|base| shared_embedding_warning(base, adapts)).iter().try_for_each(warn)?;
    // Of an adapter made by lorakit, the fingerprint counts and not the name.
    let trained = candidate.record.as_ref().and_then(|record| record.base_fingerprint.as_ref());
    let base = base.filter(|base| trained != Some(&base.identity().fingerprint));
    let last = |name: &str| name.trim_end_matches('/').rsplit(['/', '\\']).next().map(str::to_lowercase);
    match (&adapter.metadata().base_model, base.map(|base| base.identity().name.as_str())) {
        (Some(named), Some(base)) if last(named) != last(base) => context.warn(format!(
            "{folder}: base_model_name_or_path is `{named}`, but it is added for `{base}`, whose modules match"
        )),
        _ => Ok(()),
    }
}

/// Refuses existing and repeated names, adapters of another base, and adapters whose widths differ from the others.
pub fn refuse_incompatible(candidates: &mut Candidates, library: &Library) -> Result<()> {
    let mut reference = match library.expert_names()?.first() {
        Some(first) => Some((format!("the expert `{first}`"), library.adapter(first)?)),
        None => None,
    };
    let mut names = BTreeSet::new();
    candidates.retain(|Candidate { name, folder, adapter, record, .. }| {
        let folder = folder.display();
        ensure!(!names.contains(name), "two adapters are named `{name}`; rename one: NAME={folder}");
        ensure!(
            !library.contains(name),
            "{}: expert `{name}` already exists; use another name (NAME={folder}), or remove it with `library rm`",
            library.root().display(),
        );
        if let (Some(record), Some(base)) = (record.as_ref(), library.base()) {
            ensure!(
                base.is_base_of(record),
                "{folder}: trained on a base with fingerprint {}, but the library's base `{}` has {}",
                record.base_fingerprint.as_deref().unwrap_or("none"),
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
        names.insert(name.clone());
        Ok(())
    });
    Ok(())
}

/// Says which adapters, with those of the library, have the same A.
pub fn warn_of_added_a(candidates: &[Candidate], library: &Library, context: &CommandContext) -> Result<()> {
    // Reading an adapter reads all of its weights.
    const COMPARED: usize = 32;
    let names = library.expert_names()?.into_iter().take(COMPARED);
    let present: Vec<(String, Adapter)> =
        names.map(|name| Ok((name.clone(), library.adapter(&name)?))).collect::<Result<_>>()?;
    let present = present.iter().map(|(name, adapter)| (name.as_str(), adapter));
    let added = candidates.iter().map(|candidate| (candidate.name.as_str(), &candidate.adapter));
    let all: Vec<(&str, &Adapter)> = present.chain(added).collect();
    let advice = ": clusters of their parameters would follow that A and not the tasks; cluster them by --space delta, the default";
    let concern = |names: &[String]| candidates.iter().any(|candidate| names.contains(&candidate.name));
    shared_a_warning::warn_of_shared_a(&all, concern, advice, context);
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
