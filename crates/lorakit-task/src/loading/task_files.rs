//! Task files: which files of a folder are tasks, and what their names and endings say.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::file_formats::endings;

/// The task TOMLs and data files under a folder, sorted by file name within each folder. Links to folders are not followed:
/// they can form cycles.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    list_into(folder, &mut files).map_err(Error::read(format!("the folder {}", folder.display())))?;
    Ok(files)
}

fn list_into(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            list_into(&path, files)?;
        } else if split_name(&path).1 {
            files.push(path);
        }
    }
    Ok(())
}

/// Whether a file is a task TOML, by its ending; data files are known by their content.
pub(crate) fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "toml")
}

/// A file's name without the endings of a task file.
pub(crate) fn stem(path: &Path) -> String {
    split_name(path).0
}

/// The stem, and whether the ending is that of a task file.
fn split_name(path: &Path) -> (String, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for ending in std::iter::once(".toml".to_string()).chain(endings()) {
        if let Some(stem) = name.strip_suffix(&ending) {
            return (stem.into(), true);
        }
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    (stem.unwrap_or(name), false)
}
