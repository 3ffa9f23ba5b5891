//! The layout of a library's folder. Links are refused, so that nothing outside of it is read or changed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{AdapterError, Result, Within};
use crate::library::expert_name::ensure_expert_name;

/// The library's index: format, name and base.
pub(crate) const INDEX_FILE: &str = "library.json";
/// An expert's record, in its folder.
pub const EXPERT_RECORD_FILE: &str = "expert.json";
/// The folder of the experts, a PEFT folder each.
pub(crate) const EXPERTS: &str = "experts";
/// The folder of the fine-tuned bases.
pub(crate) const MODELS: &str = "models";
/// The folder of fitted routers.
pub(crate) const ROUTERS: &str = "routers";
/// The folder of training runs.
pub(crate) const RUNS: &str = "runs";
/// The prefix of the folder of a part of a run, in the run's.
pub(crate) const PART: &str = "part-";
/// The file that is locked while the library is changed.
pub(crate) const LOCK_FILE: &str = ".lock";

/// The names of experts that are being added together; it exists only during that time.
pub(crate) const ADDING_FILE: &str = ".adding.json";

/// The file that makes all locks below its folder leases.
const LEASE_FILE: &str = ".lease";

/// All that is written in a library's folder but the index, which a rename puts in place, over a link too.
const ENTRIES: [&str; 5] = [EXPERTS, MODELS, ROUTERS, RUNS, LOCK_FILE];

/// The folder whose `.lease` decides on the kind of locks of the library at `root`: its own, or that of the library that it
/// is in, as the one of the experts per task of `--mbc` is, where only that has one. Which library it is in does not depend
/// on how `root` is spelled: `..` is the parent of the folder itself, also where `root` is `.` or a link.
pub(crate) fn lease_root(root: &Path) -> PathBuf {
    let has_lease = |folder: &Path| folder.join(LEASE_FILE).is_file();
    let parent = root.join("..");
    if !has_lease(root) && has_lease(&parent) && parent.join(INDEX_FILE).is_file() { parent } else { root.to_owned() }
}

/// Refuses a library that has a link among its entries.
pub(crate) fn refuse_links(root: &Path) -> Result<()> {
    ENTRIES.iter().try_for_each(|entry| refuse_link(&root.join(entry)))
}

/// Refuses a link, through which files outside of the library would be read or changed.
pub(crate) fn refuse_link(path: &Path) -> Result<()> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    if is_link { Err(AdapterError::Link(path.to_owned())) } else { Ok(()) }
}

/// The folder `name` in the folder `parent` of the library at `root`, neither of them a link. It need not exist.
pub(crate) fn subfolder(root: &Path, parent: &str, name: &str) -> Result<PathBuf> {
    ensure_expert_name(name)?;
    let parent = root.join(parent);
    refuse_link(&parent)?;
    let folder = parent.join(name);
    refuse_link(&folder)?;
    Ok(folder)
}

/// The names of the folders in the folder `parent` of the library at `root`, sorted; none where that does not exist.
pub(crate) fn subfolder_names(root: &Path, parent: &str) -> Result<Vec<String>> {
    let folder = root.join(parent);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).within_file(&folder)? {
        let entry = entry?;
        if !is_hidden(&entry.file_name()) && entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a file name starts with a dot, as those of temporary files do.
pub(crate) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
