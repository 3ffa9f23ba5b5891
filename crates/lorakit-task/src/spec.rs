//! What stands after `--tasks`: `[NAME=]T`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::definition::Definition;
use crate::skills;
use crate::source::read_whole;
use crate::task::Task;

/// A set of generated tasks. The set of suites is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Skills on short strings, with known families: see [`skills`].
    Skills,
}

impl Suite {
    /// Every suite.
    pub const ALL: [Suite; 1] = [Suite::Skills];

    /// The name after `suite:`.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Skills => "skills",
        }
    }

    /// The tasks that `suite:NAME` and what follows it stand for, as `/heldout`.
    fn tasks(self, rest: &str) -> Result<Vec<Task>> {
        match self {
            Suite::Skills => skills::load(rest),
        }
    }

    /// Splits what follows `suite:` into a suite and the rest.
    fn named(place: &str) -> Result<(Suite, &str)> {
        let name = &place[..place.find(['/', '@']).unwrap_or(place.len())];
        let found = Suite::ALL.into_iter().find(|suite| suite.name() == name);
        let suite = found.ok_or_else(|| {
            let names: Vec<_> = Suite::ALL.iter().map(|suite| suite.name()).collect();
            anyhow!("unknown suite `{name}`; the suites are: {}", names.join(", "))
        })?;
        Ok((suite, &place[name.len()..]))
    }
}

/// Loads the tasks of one spec.
pub(crate) fn load(spec: &str, data: Option<&Path>) -> Result<Vec<Task>> {
    let (name, place) = parse(spec)?;
    let mut tasks = load_place(place, data)?;
    match (name, tasks.as_mut_slice()) {
        (None, _) => Ok(tasks),
        (Some(name), [task]) => {
            task.name = name.into();
            Ok(tasks)
        }
        (Some(name), several) => {
            bail!("`{name}=` names one task, and {place} has {}: leave it out, or name a single task", several.len())
        }
    }
}

/// Splits off `NAME=`. A path may hold an equals sign: what exists as it stands is a path.
fn parse(spec: &str) -> Result<(Option<&str>, &str)> {
    match spec.split_once('=') {
        Some((name, place)) if !Path::new(spec).exists() && !name.contains(['/', '\\']) => {
            if name.is_empty() || place.is_empty() {
                bail!("`{spec}` is not [NAME=]TASK");
            }
            Ok((Some(name), place))
        }
        Some((name, place)) if !Path::new(spec).exists() && Path::new(place).exists() => bail!(
            "`{spec}`: `{name}` cannot name a task; expected a name without `/` and `\\`, since experts and files of \
             results are named after it"
        ),
        _ if spec.is_empty() => bail!("an empty text names no task"),
        _ => Ok((None, spec)),
    }
}

fn load_place(place: &str, data: Option<&Path>) -> Result<Vec<Task>> {
    if let Some(suite) = place.strip_prefix("suite:") {
        let (suite, rest) = Suite::named(suite)?;
        return suite.tasks(rest);
    }
    if let Some((file, names)) = place.split_once(".toml:") {
        return load_some(Path::new(&format!("{file}.toml")), names, data);
    }
    let path = Path::new(place);
    let kind = fs::metadata(path).with_context(|| format!("cannot read the task {place}"))?;
    if kind.is_dir() { load_folder(path, data) } else { load_file(path, data) }
}

fn load_file(path: &Path, data: Option<&Path>) -> Result<Vec<Task>> {
    let definitions = read_definitions(path)?;
    definitions.iter().map(|definition| Task::build(definition, path, data)).collect()
}

/// The tasks of a TOML that are listed after its colon, in the order of the list.
fn load_some(path: &Path, names: &str, data: Option<&Path>) -> Result<Vec<Task>> {
    let definitions = read_definitions(path)?;
    let own = |definition: &Definition| definition.name.clone().unwrap_or_else(|| stem(path));
    let pick = |name: &str| {
        let found = definitions.iter().find(|definition| own(definition) == name);
        let definition = found.ok_or_else(|| {
            let names: Vec<_> = definitions.iter().map(own).collect();
            anyhow!("{} has no task `{name}`; it has {}", path.display(), names.join(", "))
        })?;
        Task::build(definition, path, data)
    };
    names.split(',').map(|name| pick(name.trim())).collect()
}

/// A plain file is a definition that leaves everything plain.
fn read_definitions(path: &Path) -> Result<Vec<Definition>> {
    if !is_toml(path) {
        return Ok(vec![Definition::plain(path)]);
    }
    let unreadable = || format!("cannot read {}", path.display());
    let text = String::from_utf8(read_whole(path).with_context(unreadable)?).with_context(unreadable)?;
    Definition::parse(&text).with_context(|| format!("{}", path.display()))
}

/// Every task file under a folder, but not the data files that its task TOMLs read.
fn load_folder(folder: &Path, data: Option<&Path>) -> Result<Vec<Task>> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let mut claimed = BTreeSet::new();
    for path in files.iter().filter(|path| is_toml(path)) {
        for definition in read_definitions(path)? {
            let name = definition.name.clone().unwrap_or_else(|| stem(path));
            for (_, file) in definition.files(&name, path, data)? {
                claimed.extend(fs::canonicalize(file));
            }
        }
    }
    // A link that leads nowhere stays in the list, so that loading it says so.
    files.retain(|path| !fs::canonicalize(path).is_ok_and(|path| claimed.contains(&path)));
    if files.is_empty() {
        bail!("no task in {}: no .toml, .json, .jsonl, .json.gz or .jsonl.gz", folder.display());
    }
    let tasks = files.iter().map(|path| load_file(path, data));
    Ok(tasks.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Task files under a folder, sorted by file name within each. Links to folders are not followed:
/// they can form circles.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    let entries = fs::read_dir(folder).with_context(unreadable)?;
    let mut entries: Vec<_> = entries.collect::<std::io::Result<_>>().with_context(unreadable)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().with_context(unreadable)?.is_dir() {
            list(&path, files)?;
        } else if split_name(&path).1.is_some() {
            files.push(path);
        }
    }
    Ok(())
}

/// Task TOMLs are known by their ending, data files by what is in them.
pub(crate) fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "toml")
}

/// A file's name without the endings of a task file.
pub(crate) fn stem(path: &Path) -> String {
    split_name(path).0
}

/// The stem, and the ending where it is a task file's.
fn split_name(path: &Path) -> (String, Option<&'static str>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for ending in [".toml", ".jsonl.gz", ".json.gz", ".jsonl", ".json"] {
        if let Some(stem) = name.strip_suffix(ending) {
            return (stem.into(), Some(ending));
        }
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    (stem.unwrap_or(name), None)
}
