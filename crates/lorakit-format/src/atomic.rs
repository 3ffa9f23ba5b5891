//! Files and folders that appear whole or not at all, even where a process is killed or the power
//! fails.
//!
//! Each is made under a temporary name beside its place, synced to disk, and renamed.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The prefix of temporary names. It starts with a dot, so that no name of an expert can collide
/// with it.
const TEMPORARY: &str = ".new-";

/// The prefix of the name under which a folder waits while its successor takes its place.
const REPLACED: &str = ".old-";

/// Writes `bytes` to the file at `path`, in place of what was there.
///
/// # Errors
/// If the folder of `path` does not exist or cannot be written to.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file_by(path, |temporary| Ok(fs::write(temporary, bytes)?))
}

/// Writes the file at `path`, in place of what was there, by `write`, which is given the temporary name: for what is
/// too large to stand in memory twice.
///
/// # Errors
/// If the folder of `path` does not exist or cannot be written to, or `write` fails; then nothing is left.
pub fn write_file_by(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let write = || -> Result<()> {
        let parent = parent_of(path);
        let file = with_usual_permissions(&mut tempfile::Builder::new(), 0o666).prefix(TEMPORARY).tempfile_in(parent);
        let file = file.map_err(nameless)?;
        write(file.path())?;
        // Who writes by name may have put another file there, with permissions of its own.
        fs::set_permissions(file.path(), file.as_file().metadata()?.permissions())?;
        OpenOptions::new().write(true).open(file.path())?.sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync_folder(parent)
    };
    write().with_context(|| format!("{} could not be written", path.display()))
}

/// Makes the folder at `path`, which must not exist, with the content that `fill` puts into it.
///
/// # Errors
/// If `path` exists and is not an empty folder, if it cannot be written, or if `fill` fails; then
/// nothing is left.
pub fn create_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let prepared = prepare(path, fill)?;
    fs::rename(prepared.path(), path)
        .with_context(|| format!("{} could not be made; does it exist already?", path.display()))?;
    // Renamed away: nothing is left for the guard to remove.
    drop(prepared.keep());
    sync_folder(parent_of(path))
}

/// Makes the folder at `path` anew, in place of what was there.
///
/// The old folder steps aside under a hidden name just before the new one takes its place, and is
/// then removed. [`settle`], or the next replacement, puts back an old folder whose replacer was
/// killed in between.
///
/// # Errors
/// As [`create_folder`], except that `path` may exist.
pub fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let aside = aside(path)?;
    if !path.exists() && aside.exists() {
        // The last replacement was killed halfway: what it replaced counts until this one is done.
        fs::rename(&aside, path).with_context(|| format!("{} could not be put back", path.display()))?;
    }
    if !path.exists() {
        return create_folder(path, fill);
    }
    let prepared = prepare(path, fill)?;
    // Left of a replacement that was killed after the new folder had come.
    remove_tree(&aside)?;
    fs::rename(path, &aside).with_context(|| format!("{} could not be moved", path.display()))?;
    if let Err(error) = fs::rename(prepared.path(), path) {
        fs::rename(&aside, path)?;
        bail!("{} could not be replaced: {error}", path.display());
    }
    drop(prepared.keep());
    sync_folder(parent_of(path))?;
    remove_tree(&aside)
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} could not be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the folder at `path`, which disappears at once.
///
/// # Errors
/// If it does not exist or cannot be removed.
pub fn remove_folder(path: &Path) -> Result<()> {
    let hidden = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent_of(path))?;
    fs::rename(path, hidden.path()).with_context(|| format!("{} could not be removed", path.display()))?;
    sync_folder(parent_of(path))?;
    Ok(hidden.close()?)
}

/// Clears what killed writers left in `folder`: a folder that had stepped aside goes back if its
/// successor never came, and temporary ones are removed. Only for a caller whom no other writer can
/// be beside, that is, who holds the folder's lock.
///
/// # Errors
/// If the folder cannot be read or changed.
pub fn settle(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some(original) = name.strip_prefix(REPLACED)
            && !folder.join(original).exists()
        {
            fs::rename(entry.path(), folder.join(original))?;
        } else if name.starts_with(TEMPORARY) || name.starts_with(REPLACED) {
            let is_folder = entry.file_type()?.is_dir();
            if is_folder { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
    }
    Ok(())
}

/// A filled temporary folder beside `path`, its files synced.
fn prepare(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<TempDir> {
    let parent = parent_of(path);
    let folder = with_usual_permissions(&mut tempfile::Builder::new(), 0o777)
        .prefix(TEMPORARY)
        .tempdir_in(parent)
        .map_err(nameless)
        .with_context(|| format!("{} could not be made", path.display()))?;
    fill(folder.path())?;
    sync_folder(folder.path())?;
    Ok(folder)
}

/// The error without the temporary name, which means nothing to whoever asked for another.
fn nameless(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        ErrorKind::NotFound => std::io::Error::new(ErrorKind::NotFound, "nothing can be made there"),
        kind => kind.into(),
    }
}

/// Where the folder at `path` waits while it is replaced.
fn aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
    let mut hidden = std::ffi::OsString::from(REPLACED);
    hidden.push(name);
    Ok(path.with_file_name(hidden))
}

/// The folder that `path` is in; the current one for a bare name.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename inside `folder` last. Elsewhere than on Unix folders cannot be opened, nor need
/// they be.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Temporary files are private by default; these are to be what the user's umask makes of any other
/// file.
fn with_usual_permissions<'a, 'p, 's>(
    builder: &'a mut tempfile::Builder<'p, 's>,
    mode: u32,
) -> &'a mut tempfile::Builder<'p, 's> {
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}
