//! Task files: which files of a folder are tasks, and what their names and extensions say.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Result, TaskError};
use crate::loading::dataset_folder;
use crate::source::file_extension::strip_extension;
use crate::source::file_formats::data_stem;

/// The task TOMLs, data files and folders that are one task under a folder, sorted by file name within each folder. Files
/// that describe a dataset are left out. Links to folders are not followed: they can form cycles.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    list_into(folder, &mut files)?;
    Ok(files)
}

fn list_into(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let unreadable = || TaskError::read(format!("the folder {}", folder.display()));
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut entries = entries.map_err(unreadable())?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().map_err(unreadable())?.is_dir() {
            match dataset_folder::files(&path)? {
                Some(_) => files.push(path),
                None => list_into(&path, files)?,
            }
        } else if split_name(&path).1 && !dataset_folder::describes_dataset(&entry.file_name().to_string_lossy()) {
            files.push(path);
        }
    }
    Ok(())
}

/// Whether a file is a task TOML, by its extension; data files are known by their content.
pub(crate) fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
}

/// A file's name without the extensions of a task file, or the name of a folder that is one task.
pub(crate) fn stem(path: &Path) -> String {
    if path.is_dir() { dataset_folder::name(path) } else { split_name(path).0 }
}

/// The stem, and whether the extension is that of a task file.
fn split_name(path: &Path) -> (String, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(stem) = strip_extension(&name, ".toml").or_else(|| data_stem(&name)) {
        return (stem.into(), true);
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    (stem.unwrap_or(name), false)
}
