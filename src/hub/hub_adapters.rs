//! The files of adapters on the Hub: `hub:ORG/NAME[@REV][/FOLDER|/FILE.gguf]`, and `hub:ORG/PATTERN` for all that match.

use super::client::HubClient;
use super::glob;
use super::repository::{Repository, RepositoryKind};
use super::snapshot::{NeededFiles, RemoteSnapshot, snapshot};
use crate::base::base_source::is_gguf;
use crate::command_context::CommandContext;
use crate::output::text_table::bytes;
use anyhow::{Context as _, Result, bail, ensure};
use lorakit_adapter::{CONFIG_FILE, EXPERT_RECORD_FILE, WEIGHTS_FILE};
use std::path::{Path, PathBuf};

/// The largest GGUF file in bytes that is downloaded without being named: larger ones are models rather than adapters.
const LARGEST_UNNAMED: u64 = 4 << 30;

/// An adapter of the Hub.
pub struct HubAdapter {
    /// The name of its folder or GGUF file, or of the repository.
    pub name: String,
    /// Its repository, as it is typed.
    pub repository: String,
    /// Its folder or GGUF file in the local cache, or why it could not be downloaded.
    pub path: Result<PathBuf>,
}

/// Downloads the adapters that follow `hub:`. One that cannot be downloaded does not keep the others back.
pub fn fetch(spec: &str, context: &CommandContext) -> Result<Vec<HubAdapter>> {
    let named = |repository: Repository, within: &str| {
        let last = if within.is_empty() { &repository.name } else { within };
        let name = last.rsplit('/').next().unwrap_or_default().to_owned();
        if is_gguf(Path::new(within)) {
            let name = Path::new(&name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let cached = snapshot(&repository, &GgufAdapterFile(within), context).map(|snapshot| snapshot.join(within));
            return HubAdapter { name, repository: format!("{repository}/{within}"), path: cached };
        }
        let files = AdapterFiles { folder: within.to_owned(), typed: repository.to_string() };
        let cached = snapshot(&repository, &files, context).map(|snapshot| {
            let folder = snapshot.join(within);
            only_gguf(&folder).unwrap_or(folder)
        });
        HubAdapter { name, repository: repository.to_string(), path: cached }
    };
    if spec.contains('*') {
        return Ok(matching(spec)?.into_iter().map(|repository| named(repository, "")).collect());
    }
    match Repository::parse(RepositoryKind::Model, spec) {
        Some((repository, within)) => Ok(vec![named(repository, within)]),
        None => {
            bail!("hub:{spec}: expected hub:ORG/NAME[@REV][/FOLDER|/FILE.gguf], or hub:ORG/PATTERN with * for any text")
        }
    }
}

/// The GGUF file of a folder that has one, and no PEFT adapter.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path()).filter(|path| is_gguf(path));
    let only = files.next().filter(|_| !folder.join(CONFIG_FILE).exists())?;
    files.next().is_none().then_some(only)
}

/// The repositories whose names match `ORG/PATTERN`, by name.
fn matching(spec: &str) -> Result<Vec<Repository>> {
    let parts = spec.split_once('/').filter(|(organization, pattern)| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !organization.is_empty() && organization.chars().all(known) && pattern.chars().all(|c| known(c) || c == '*')
    });
    let (organization, pattern) = parts.with_context(|| {
        format!("hub:{spec}: expected hub:ORG/PATTERN, where * stands for any text in the pattern only")
    })?;
    // The Hub searches for a text within names: the longest of the pattern narrows the list most.
    let text = pattern.split('*').max_by_key(|text| text.len()).unwrap_or_default();
    let names = HubClient::new().search(organization, text).with_context(|| format!("hub:{spec}"))?;
    let own = |name: &&String| {
        name.split_once('/').is_some_and(|(by, own)| by == organization && glob::matches(pattern, own))
    };
    let mut names: Vec<&String> = names.iter().filter(own).collect();
    names.sort();
    names.dedup();
    ensure!(!names.is_empty(), "hub:{spec}: the Hub has no model repository of that name; check the pattern");
    let repository = |name: &&String| Repository { kind: RepositoryKind::Model, name: (*name).clone(), revision: None };
    Ok(names.iter().map(repository).collect())
}

/// The files of an adapter in a folder of a repository.
struct AdapterFiles {
    folder: String,
    /// The repository as it is typed, for messages.
    typed: String,
}

/// A GGUF adapter, by its path in a repository.
struct GgufAdapterFile<'a>(&'a str);

impl NeededFiles for GgufAdapterFile<'_> {
    fn download(&self, remote: &RemoteSnapshot<'_>) -> Result<()> {
        remote.info.files().filter(|file| *file == self.0).try_for_each(|file| remote.get(file).map(drop))
    }

    fn missing(&self, folder: &Path) -> Option<String> {
        (!folder.join(self.0).exists()).then(|| self.0.to_owned())
    }
}

impl NeededFiles for AdapterFiles {
    fn download(&self, remote: &RemoteSnapshot<'_>) -> Result<()> {
        let own = |file: &&str| match self.folder.as_str() {
            "" => !file.contains('/'),
            folder => file.rsplit_once('/').is_some_and(|(within, _)| within == folder),
        };
        let files: Vec<&str> = remote.info.files().filter(own).collect();
        let name = |file: &str| file.rsplit('/').next().unwrap_or_default().to_owned();
        if !files.iter().any(|file| name(file) == CONFIG_FILE) {
            let ggufs: Vec<&str> = files.iter().copied().filter(|file| is_gguf(Path::new(file))).collect();
            match ggufs[..] {
                [] => {}
                [only] => {
                    let size = remote.info.size(only).unwrap_or_default();
                    ensure!(
                        size <= LARGEST_UNNAMED,
                        "it holds no PEFT adapter, but {only} of {}, which may be a model; if it is an adapter, name it: \
                         {}/{only}",
                        bytes(size),
                        self.typed
                    );
                    return remote.get(only).map(drop);
                }
                [first, ..] => bail!("it holds several GGUF files; name one: {}/{first}", self.typed),
            }
        }
        let has_safetensors = files.iter().any(|file| name(file) == WEIGHTS_FILE);
        // Older adapters have a pickle or shards, for which the reader says what to do.
        let is_weights = |name: &str| name == WEIGHTS_FILE || (!has_safetensors && name.starts_with("adapter_model"));
        // Weights last: an interrupted download must not look complete, and not every adapter has a record.
        let others = files.iter().filter(|file| [CONFIG_FILE, EXPERT_RECORD_FILE].contains(&name(file).as_str()));
        let weights = files.iter().filter(|file| is_weights(&name(file)));
        others.chain(weights).try_for_each(|file| remote.get(file).map(drop))
    }

    fn missing(&self, folder: &Path) -> Option<String> {
        let folder = folder.join(&self.folder);
        let shown = |file: &str| match self.folder.as_str() {
            "" => file.to_owned(),
            within => format!("{within}/{file}"),
        };
        if !folder.join(CONFIG_FILE).exists() {
            return only_gguf(&folder).is_none().then(|| shown(CONFIG_FILE));
        }
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let weights: Vec<String> =
            names.filter(|name| name.starts_with("adapter_model") && !name.ends_with(".json")).collect();
        match weights.is_empty() {
            true => Some(shown(WEIGHTS_FILE)),
            false => absent_shard(&weights).map(|shard| shown(&shard)),
        }
    }

    /// One GGUF file that is there may be one of several.
    fn suffices(&self, folder: &Path) -> bool {
        self.missing(folder).is_none() && only_gguf(&folder.join(&self.folder)).is_none()
    }
}

/// The first shard that is not among the names of weights, where one of them is a shard: `NAME-00001-of-00002.END`.
fn absent_shard(weights: &[String]) -> Option<String> {
    let shard = |name: &String| {
        let (start, rest) = name.split_once("-of-")?;
        let (count, end) = rest.split_once('.')?;
        let (start, _) = start.rsplit_once('-')?;
        let width = count.len();
        let all = 1..=count.parse::<usize>().ok()?;
        all.map(|at| format!("{start}-{at:0width$}-of-{count}.{end}")).find(|shard| !weights.contains(shard))
    };
    weights.iter().find_map(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_absent_shard_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let shard = |at: usize| format!("adapter_model-{at:05}-of-00003.safetensors");
        assert_eq!(absent_shard(&names(&["adapter_model.bin"])), None);
        assert_eq!(absent_shard(&[shard(1), shard(3)]), Some(shard(2)));
        assert_eq!(absent_shard(&[shard(3), shard(1), shard(2)]), None);
    }
}
