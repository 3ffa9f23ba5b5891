//! Folders that are one task: those that Hugging Face `datasets` saves, and those whose files are named after splits, as
//! on the Hub.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{At, Result, TaskError};
use crate::loading::most_common_format::of_most_common_format;
use crate::loading::split_files::SplitFile;
use crate::source::file_content::read_whole;
use crate::source::file_extension::{has_extension, strip_extension};
use crate::source::file_formats;
use crate::split::Split;

/// Files that describe a dataset and hold no rows.
const DESCRIPTIONS: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"];

/// The dataset card, the file whose metadata may name configurations, and which files are of which split.
pub const CARD: &str = "README.md";

/// Whether a folder's dataset card has the key `configs` in its metadata, the YAML between two lines of `---`.
pub fn card_lists_configs(folder: &Path) -> bool {
    // A parser of YAML would be needed for more than whether the key is there.
    let card = fs::read_to_string(folder.join(CARD)).unwrap_or_default();
    let metadata = card.strip_prefix("---").and_then(|rest| rest.split_once("\n---"));
    metadata.is_some_and(|(metadata, _)| metadata.lines().any(|line| line.starts_with("configs:")))
}

/// Whether a file's name is one of those that describe a dataset and hold no rows.
pub fn describes_dataset(name: &str) -> bool {
    DESCRIPTIONS.contains(&name)
}

/// The data files of a folder that is one task; None if it is a folder of tasks.
///
/// Such a folder is a saved `DatasetDict` or `Dataset`, or has nothing but data files named after splits: `train.parquet`
/// and `test.parquet`, or shards such as `train-00000-of-00002.parquet`.
///
/// Of files of one split in several formats those of one are read, see [`of_most_common_format`].
///
/// With a test split, the rows of each split are those of its files, as they are. Without one, train rows are split by hash.
pub(crate) fn files(folder: &Path) -> Result<Option<Vec<SplitFile>>> {
    let files = if folder.join("dataset_dict.json").is_file() {
        saved_splits(folder)?
    } else if folder.join("state.json").is_file() {
        return Ok(Some(saved_files(folder)?.into_iter().map(|file| (None, file)).collect()));
    } else {
        match named_after_splits(folder)? {
            Some(files) => files,
            None => return Ok(None),
        }
    };
    // A test split of the same rows is needed sooner or later, and the hash gives one.
    let has_test = files.iter().any(|(split, _)| *split == Some(Split::Test));
    let own = |split: &Split| has_test || *split != Split::Train;
    Ok(Some(files.into_iter().map(|(split, file)| (split.filter(own), file)).collect()))
}

/// The name of the task that a folder is: `data`, as on the Hub, is no name.
pub(crate) fn name(folder: &Path) -> String {
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.into());
    let names = whole.ancestors().filter_map(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    names.into_iter().find(|name| name != "data").unwrap_or_else(|| "data".into())
}

/// The `dataset_dict.json` of a saved `DatasetDict`.
#[derive(Deserialize)]
struct DatasetDict {
    splits: Vec<String>,
}

/// The `state.json` of a saved `Dataset`.
#[derive(Deserialize)]
struct DatasetState {
    #[serde(rename = "_data_files", default)]
    data_files: Vec<DatasetFile>,
    /// Rows that were selected or shuffled, in versions that saved them so.
    #[serde(rename = "_indices_data_files")]
    indices: Option<Vec<DatasetFile>>,
}

#[derive(Deserialize)]
struct DatasetFile {
    filename: String,
}

fn saved_splits(folder: &Path) -> Result<Vec<SplitFile>> {
    let dict: DatasetDict = read_json(&folder.join("dataset_dict.json"))?;
    let mut files = Vec::new();
    for name in &dict.splits {
        let split = split_named(name).ok_or_else(|| {
            let place = folder.join(name);
            TaskError::Data(format!(
                "{}: the split `{name}` is none of train, validation and test; give {} as a task of its own",
                folder.display(),
                place.display()
            ))
        })?;
        files.extend(saved_files(&folder.join(plain(name, folder)?))?.into_iter().map(|file| (Some(split), file)));
    }
    Ok(files)
}

fn saved_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let state: DatasetState = read_json(&folder.join("state.json"))?;
    if state.indices.is_some_and(|files| !files.is_empty()) {
        return Err(TaskError::Data(format!(
            "{}: its rows are chosen by a separate file of indices; save it again after `flatten_indices()`",
            folder.display()
        )));
    }
    let file = |file: &DatasetFile| Ok(folder.join(plain(&file.filename, folder)?));
    state.data_files.iter().map(file).collect()
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let bytes = read_whole(file).map_err(TaskError::read(file.display()))?;
    serde_json::from_slice(&bytes).map_err(TaskError::from).at(|| file.display().to_string())
}

/// A file name that leads nowhere else.
fn plain<'n>(name: &'n str, folder: &Path) -> Result<&'n str> {
    let leads_away = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ':']);
    if leads_away {
        return Err(TaskError::Data(format!("{}: `{name}` is not the name of a file in it", folder.display())));
    }
    Ok(name)
}

/// The files of a folder that has nothing but data files of several splits, or shards of one.
fn named_after_splits(folder: &Path) -> Result<Option<Vec<SplitFile>>> {
    let (mut files, mut shards, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries(folder)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if has_extension(&name, ".toml") {
            return Ok(None);
        }
        if name.starts_with('.') || describes_dataset(&name) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(entry.path());
        }
        let Some(stem) = file_formats::data_stem(&name).filter(|_| entry.path().is_file()) else { continue };
        let Some((split, shard)) = split_and_shard(stem) else { return Ok(None) };
        shards.extend(shard.map(|(number, count)| (split, number, count)));
        files.push((Some(split), entry.path()));
    }
    let has_several = files.iter().any(|(split, _)| *split != files[0].0);
    if shards.is_empty() && !has_several {
        return Ok(None);
    }
    ensure_complete(&shards, folder)?;
    for folder in &folders {
        // Its tasks must not be lost.
        if holds_tasks(folder)? {
            return Ok(None);
        }
    }
    // As `datasets` orders them: train, validation, test.
    let of = |split: Split| {
        let own = files.iter().filter(|(other, _)| *other == Some(split)).cloned().collect();
        of_most_common_format(own, |(_, file): &SplitFile| file.to_string_lossy().into_owned())
    };
    Ok(Some([Split::Train, Split::Validation, Split::Test].into_iter().flat_map(of).collect()))
}

/// The extension of the files that the Hub cuts into shards.
const SHARDED: &str = ".parquet";

/// The shards that stand for `NAME.parquet` where there is no such file: `NAME-00000-of-00002.parquet`, as on the Hub. Empty
/// for a file of another extension.
///
/// # Errors
/// If there are neither the file nor shards, or a shard is missing.
pub(crate) fn shards_of(file: &Path) -> Result<Vec<PathBuf>> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(name) = strip_extension(&name, SHARDED).filter(|_| !file.exists()) else { return Ok(Vec::new()) };
    let folder = Some(folder_of(file)).filter(|folder| folder.is_dir());
    let (mut files, mut shards) = (Vec::new(), Vec::new());
    for entry in folder.map(entries).transpose()?.unwrap_or_default() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let Some((split, (number, count))) = strip_extension(&found, SHARDED).and_then(shard) else { continue };
        if split == name {
            files.push(entry.path());
            shards.push((name, number, count));
        }
    }
    if files.is_empty() {
        return Err(TaskError::Data(format!(
            "{}: there is no such file, nor are there shards of it, {name}-*-of-*{SHARDED} as on the Hub; download the data, or \
             change the path in the task TOML",
            file.display()
        )));
    }
    ensure_complete(&shards, folder.unwrap_or(file))?;
    Ok(files)
}

/// The folder of a file: of a bare name the working directory, which has an empty path as a parent.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The entries of a folder, by name.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut entries = entries.map_err(TaskError::read(format!("the folder {}", folder.display())))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

/// Whether a file under a folder may be a task.
fn holds_tasks(folder: &Path) -> Result<bool> {
    for entry in entries(folder)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || describes_dataset(&name) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_task = if is_folder { holds_tasks(&entry.path())? } else { file_formats::data_stem(&name).is_some() };
        if is_task || has_extension(&name, ".toml") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The split that a file is named after, and the number and count if it is a shard.
fn split_and_shard(stem: &str) -> Option<(Split, Option<(usize, usize)>)> {
    let Some((name, shard)) = shard(stem) else {
        // A file named so may as well be a task of its own.
        let is_task = matches!(stem.to_lowercase().as_str(), "eval" | "evaluation");
        return split_named(stem).filter(|_| !is_task).map(|split| (split, None));
    };
    split_named(name).map(|split| (split, Some(shard)))
}

/// Refuses a folder that lacks one of the shards that the others' names promise.
fn ensure_complete<S>(shards: &[(S, usize, usize)], folder: &Path) -> Result<()>
where
    S: Copy + Ord + std::fmt::Display,
{
    let found: BTreeSet<(S, usize, usize)> = shards.iter().copied().collect();
    let mut counts = BTreeSet::new();
    for &(split, _, count) in shards.iter().filter(|(split, _, count)| counts.insert((*split, *count))) {
        let missing = (0..count).find(|number| !found.contains(&(split, *number, count)));
        if let Some(number) = missing {
            return Err(TaskError::Data(format!(
                "{}: {split} has no shard {number:05} of {count:05}; is the download complete?",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// The most shards of a split.
const MAX_SHARDS: usize = 100_000;

/// The name, number and count of `train-00000-of-00002`.
fn shard(stem: &str) -> Option<(&str, (usize, usize))> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let (number, count): (usize, usize) = (number.parse().ok()?, count.parse().ok()?);
    (number < count && count < MAX_SHARDS).then_some((name, (number, count)))
}

/// The split that a name stands for, as on the Hub.
fn split_named(name: &str) -> Option<Split> {
    match name.to_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "validation" | "valid" | "val" | "dev" => Some(Split::Validation),
        "test" | "testing" | "eval" | "evaluation" => Some(Split::Test),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// In time that grows with the shards, not with their cube.
    #[test]
    fn many_shards_are_counted_at_once() {
        let shards: Vec<(Split, usize, usize)> =
            (0..MAX_SHARDS - 1).map(|number| (Split::Train, number, MAX_SHARDS - 1)).collect();
        ensure_complete(&shards, Path::new("f")).unwrap();
        let error = ensure_complete(&shards[..shards.len() - 1], Path::new("f")).unwrap_err().to_string();
        assert!(error.contains("f: train has no shard 99998 of 99999"), "{error}");
    }

    #[test]
    fn a_bare_name_is_in_the_working_directory() {
        for (file, folder) in [("a.parquet", "."), ("b/a.parquet", "b"), ("/a.parquet", "/")] {
            assert_eq!(folder_of(Path::new(file)), Path::new(folder), "{file}");
        }
        // Its folder is looked at, and read.
        assert!(folder_of(Path::new("a.parquet")).is_dir());
        assert!(!entries(folder_of(Path::new("a.parquet"))).unwrap().is_empty());
    }
}
