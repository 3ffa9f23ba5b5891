//! Files and folders that appear whole or not at all, even where the process is killed or the power fails.
//!
//! Each is written under a temporary name in the same folder, synced to disk, and renamed. What a folder is filled with is
//! synced once it is all written, so it may be written in any way.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::{panic, thread};

use tempfile::TempDir;

use crate::error::FormatError;

/// The prefix of temporary names. It starts with a dot, so that no expert's name can collide with it.
pub const TEMPORARY: &str = ".new-";

/// The prefix of the name of a folder or file that is being replaced, until its successor is in place.
pub const REPLACED: &str = ".old-";

/// How many syncs run at once. Those that wait together share a write of the file system's journal, which takes most of the
/// time where files are small.
const CONCURRENT_SYNCS: usize = 16;

/// Writes `bytes` to the file at `path`, replacing what was there.
///
/// # Errors
/// If the folder of `path` does not exist or cannot be written to.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    write_file_by(path, |temporary| fs::write(temporary, bytes))
}

/// Writes the file at `path`, replacing what was there, with `write`, which is given the temporary name: for what is too
/// large to be in memory twice.
///
/// # Errors
/// If the folder of `path` does not exist or cannot be written to, or `write` fails; then nothing is left behind.
pub fn write_file_by<E>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), FormatError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let failed = FormatError::io(path, "written");
    let parent = parent_of(path);
    let create = || {
        let mut builder = tempfile::Builder::new();
        with_default_permissions(&mut builder, 0o666).prefix(TEMPORARY).tempfile_in(parent).map_err(without_path)
    };
    let file = match create() {
        Ok(file) => file,
        Err(error) => return Err(failed(error)),
    };
    write(file.path()).map_err(|error| FormatError::Write { path: path.to_owned(), source: error.into() })?;
    let keep = || -> io::Result<()> {
        // `write` may have put another file under that name, with permissions of its own.
        fs::set_permissions(file.path(), file.as_file().metadata()?.permissions())?;
        OpenOptions::new().write(true).open(file.path())?.sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync_folder(parent)
    };
    keep().map_err(failed)
}

/// Creates the folder at `path`, which must not exist, with the content that `fill` puts into it.
///
/// # Errors
/// If `path` exists and is not an empty folder, if it cannot be written, or if `fill` fails; then nothing is left behind.
pub fn create_folder<E>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E>
where
    E: From<FormatError>,
{
    let prepared = prepare(path, fill)?;
    sync_trees(&[prepared.path()])?;
    create_as(path, prepared)?;
    Ok(sync_folder(parent_of(path)).map_err(FormatError::io(path, "synced"))?)
}

/// Creates the folder at `path` as [`create_folder`] does, but syncs nothing: [`sync_created`] does so for many at once. If
/// the power fails before that, it may have any content.
///
/// # Errors
/// As [`create_folder`].
pub fn create_folder_unsynced<E>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E>
where
    E: From<FormatError>,
{
    Ok(create_as(path, prepare(path, fill)?)?)
}

/// Syncs folders of `parent` that [`create_folder_unsynced`] created.
///
/// # Errors
/// If one cannot be read or synced.
pub fn sync_created(parent: &Path, folders: &[impl AsRef<Path>]) -> Result<(), FormatError> {
    sync_trees(folders)?;
    sync_folder(parent).map_err(FormatError::io(parent, "synced"))
}

/// Gives a prepared folder its name, which is free.
fn create_as(path: &Path, prepared: TempDir) -> Result<(), FormatError> {
    fs::rename(prepared.path(), path).map_err(FormatError::io(path, "created (does it exist already?)"))?;
    // Renamed: nothing is left for the guard to remove.
    drop(prepared.keep());
    Ok(())
}

/// Creates the folder at `path`, replacing what was there.
///
/// The old folder is moved to a hidden name just before the new one takes its place, and is then removed. [`recover`],
/// or the next replacement, restores an old folder whose replacement was killed in between.
///
/// # Errors
/// As [`create_folder`], except that `path` may exist.
pub fn replace_folder<E>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E>
where
    E: From<FormatError>,
{
    let hidden = hidden_path(path, REPLACED)?;
    if !path.exists() && hidden.exists() {
        // The last replacement was killed halfway: what it replaced counts until this one is done.
        fs::rename(&hidden, path).map_err(FormatError::io(path, "restored"))?;
    }
    if !path.exists() {
        return create_folder(path, fill);
    }
    let prepared = prepare(path, fill)?;
    sync_trees(&[prepared.path()])?;
    // Left by a replacement that was killed after the new folder was in place.
    remove_tree(&hidden)?;
    fs::rename(path, &hidden).map_err(FormatError::io(path, "moved"))?;
    if let Err(error) = fs::rename(prepared.path(), path) {
        fs::rename(&hidden, path).map_err(FormatError::io(path, "restored"))?;
        return Err(FormatError::io(path, "replaced")(error).into());
    }
    drop(prepared.keep());
    sync_folder(parent_of(path)).map_err(FormatError::io(path, "synced"))?;
    Ok(remove_tree(&hidden)?)
}

/// Whether [`replace_folder`] is replacing the folder at `path`, or was killed amid that, and there is none for now.
pub fn is_being_replaced(path: &Path) -> bool {
    hidden_path(path, REPLACED).is_ok_and(|hidden| hidden.exists()) && !path.exists()
}

fn remove_tree(path: &Path) -> Result<(), FormatError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(FormatError::io(path, "removed")(error)),
        _ => Ok(()),
    }
}

/// Removes the file at `path`.
///
/// # Errors
/// If it does not exist or cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), FormatError> {
    let removed = fs::remove_file(path).and_then(|()| sync_folder(parent_of(path)));
    removed.map_err(FormatError::io(path, "removed"))
}

/// Removes the folder at `path`, which disappears at once.
///
/// # Errors
/// If it does not exist or cannot be removed.
pub fn remove_folder(path: &Path) -> Result<(), FormatError> {
    let remove = || -> io::Result<()> {
        let hidden = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent_of(path)).map_err(without_path)?;
        fs::rename(path, hidden.path())?;
        sync_folder(parent_of(path))?;
        hidden.close()
    };
    remove().map_err(FormatError::io(path, "removed"))
}

/// Cleans up what killed writers left in `folder`: a folder whose replacement never appeared is restored, and temporary
/// ones are removed. The caller must hold the folder's lock, so that no other writer is at work.
///
/// # Errors
/// If the folder cannot be read or changed.
pub fn recover(folder: &Path) -> Result<(), FormatError> {
    let recover = || -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
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
    };
    recover().map_err(FormatError::io(folder, "cleaned up"))
}

/// A filled temporary folder beside `path`.
fn prepare<E>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<TempDir, E>
where
    E: From<FormatError>,
{
    let mut builder = tempfile::Builder::new();
    let folder = with_default_permissions(&mut builder, 0o777).prefix(TEMPORARY).tempdir_in(parent_of(path));
    let folder = folder.map_err(without_path).map_err(FormatError::io(path, "created"))?;
    fill(folder.path())?;
    Ok(folder)
}

/// Syncs folders with all that is in them.
fn sync_trees(folders: &[impl AsRef<Path>]) -> Result<(), FormatError> {
    let mut paths = Vec::new();
    for folder in folders.iter().map(AsRef::as_ref) {
        list_tree(folder, &mut paths).map_err(FormatError::io(folder, "synced"))?;
    }
    let sync_all =
        |paths: &[PathBuf]| paths.iter().try_for_each(|path| sync(path).map_err(FormatError::io(path, "synced")));
    thread::scope(|scope| {
        let shares = paths.chunks(paths.len().div_ceil(CONCURRENT_SYNCS).max(1));
        let threads: Vec<_> = shares.map(|share| scope.spawn(move || sync_all(share))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|caught| panic::resume_unwind(caught)))
    })
}

/// Lists a folder and the files and folders in it.
fn list_tree(folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            list_tree(&entry, paths)?;
        } else if kind.is_file() {
            paths.push(entry);
        }
    }
    paths.push(folder.to_owned());
    Ok(())
}

/// Makes the content of a file or folder durable.
fn sync(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return sync_folder(path);
    }
    // Windows syncs only what is open for writing; elsewhere a file may forbid that.
    OpenOptions::new().read(true).write(cfg!(windows)).open(path)?.sync_all()
}

/// The error without the temporary path, which means nothing to the caller.
fn without_path(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::NotFound => io::Error::new(ErrorKind::NotFound, "the parent folder does not exist"),
        kind => kind.into(),
    }
}

/// The path beside `path` whose name begins with a prefix that hides it, such as [`REPLACED`].
///
/// # Errors
/// If `path` has no name.
pub fn hidden_path(path: &Path, prefix: &str) -> Result<PathBuf, FormatError> {
    let name = path.file_name().ok_or_else(|| FormatError::NoName { path: path.to_owned() })?;
    let mut hidden = std::ffi::OsString::from(prefix);
    hidden.push(name);
    Ok(path.with_file_name(hidden))
}

/// The folder that `path` is in; the current one for a bare name.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes renames inside `folder` durable. Only Unix can open a folder, and only Unix needs it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Gives a temporary file the permissions that any other file gets from the umask: by default it would be private.
fn with_default_permissions<'a, 'p, 's>(
    builder: &'a mut tempfile::Builder<'p, 's>,
    mode: u32,
) -> &'a mut tempfile::Builder<'p, 's> {
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_writer_leaves_what_was_there_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (file, tree) = (folder.path().join("file"), folder.path().join("tree"));
        write_file(&file, b"old").unwrap();
        create_folder(&tree, |tree| write_file(&tree.join("a"), b"a")).unwrap();
        let error = write_file_by(&file, |_| Err("no space")).unwrap_err();
        assert!(error.to_string().ends_with("file: cannot be written"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), "no space");
        let missing = folder.path().join("missing");
        let failed = |tree: &Path| write_file(&tree.join("missing/b"), b"b");
        assert!(replace_folder(&tree, failed).is_err() && create_folder(&missing, failed).is_err());
        assert_eq!(
            (fs::read(&file).unwrap().as_slice(), names(folder.path())),
            (&b"old"[..], vec!["file".into(), "tree".into()])
        );
        assert_eq!(names(&tree), ["a"]);
    }

    #[test]
    fn a_folder_is_created_once_replaced_whole_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        let fill = |name: &'static str| move |tree: &Path| write_file(&tree.join(name), b"");
        create_folder(&tree, fill("a")).unwrap();
        let error = create_folder(&tree, fill("b")).unwrap_err().to_string();
        assert!(error.contains("does it exist already?"), "{error}");
        replace_folder(&tree, fill("c")).unwrap();
        assert_eq!((names(&tree), names(folder.path())), (vec!["c".to_owned()], vec!["tree".to_owned()]));
        remove_folder(&tree).unwrap();
        assert!(names(folder.path()).is_empty() && remove_folder(&tree).is_err());
    }

    #[test]
    fn folders_are_created_together_and_synced_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let trees: Vec<PathBuf> = (0..40).map(|number| folder.path().join(format!("tree{number}"))).collect();
        for tree in &trees {
            let fill = |tree: &Path| {
                fs::create_dir(tree.join("inner")).and_then(|()| fs::write(tree.join("inner/a"), "a")).unwrap();
                Ok::<_, FormatError>(())
            };
            create_folder_unsynced(tree, fill).unwrap();
            assert!(create_folder_unsynced(tree, fill).is_err(), "it is taken");
        }
        sync_created(folder.path(), &trees).unwrap();
        assert!(trees.iter().all(|tree| fs::read(tree.join("inner/a")).unwrap() == b"a"));
        assert_eq!(names(folder.path()).len(), 40);
        remove_folder(&trees[39]).unwrap();
        let error = sync_created(folder.path(), &trees).unwrap_err().to_string();
        assert!(error.contains("tree39: cannot be synced"), "{error}");
        remove_file(&trees[0].join("inner/a")).unwrap();
        assert!(remove_file(&trees[0].join("inner/a")).is_err());
    }

    #[test]
    fn a_writer_finds_nothing_to_rename_after_another_has_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        let (file, tree) = (folder.path().join("file"), folder.path().join("tree"));
        write_file(&file, b"old").unwrap();
        create_folder(&tree, |tree| write_file(&tree.join("a"), b"a")).unwrap();
        let clean_up = || recover(folder.path());
        let late = write_file_by(&file, |temporary| {
            fs::write(temporary, b"late").unwrap();
            clean_up()
        });
        let late_tree = replace_folder(&tree, |tree| {
            write_file(&tree.join("late"), b"late")?;
            clean_up()
        });
        assert!(late.is_err() && late_tree.is_err());
        assert_eq!((fs::read(&file).unwrap().as_slice(), names(&tree)), (&b"old"[..], vec!["a".to_owned()]));
        assert_eq!(names(folder.path()), ["file", "tree"]);
    }

    #[test]
    fn recovery_restores_a_folder_whose_replacement_never_came() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".old-a", ".old-b", "b", ".new-x"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join(".new-y"), "").unwrap();
        recover(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["a", "b"]);
    }
}
