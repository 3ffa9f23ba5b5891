//! A library: a folder of experts, each a PEFT folder with a record of how it was made.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use lorakit_format::atomic;
use lorakit_format::hash::sha256_of_file;
use lorakit_format::similar_names;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::library::base_identity::BaseIdentity;
use crate::library::expert_name::ensure_expert_name;
use crate::library::expert_record::ExpertRecord;
use crate::library::json_file::{read_json, read_json_if_exists, write_json, write_json_unsynced};
use crate::library::library_layout::{
    EXPERT_RECORD_FILE, EXPERTS, INDEX_FILE, RUNS, is_hidden, refuse_link, refuse_links, subfolder,
};
use crate::library::library_lock::{self, LibraryLock};
use crate::name_list::quote_names;
use crate::peft::adapter_files::WEIGHTS_FILE;

/// The version of the format of library.json and of the folders next to it.
const FORMAT: u32 = 1;

/// An open library. Opening and listing it reads no weights.
///
/// Reading needs no lock, since experts are added and removed atomically. A process that changes a library holds
/// its [`lock`](Self::lock) meanwhile.
#[derive(Clone, Debug)]
pub struct Library {
    root: PathBuf,
    index: Index,
    /// The locks without which nothing is changed.
    locks: Vec<LibraryLock>,
}

/// library.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Index {
    format: u32,
    name: String,
    base: Option<BaseIdentity>,
}

/// The part of a record that names tasks.
#[derive(Deserialize)]
struct TaskNames {
    tasks: Vec<TaskName>,
}

#[derive(Deserialize)]
struct TaskName {
    name: String,
}

impl Library {
    /// Opens the library at `root`.
    ///
    /// # Errors
    /// If there is none, its format is not the one that this version reads, or a part of it is a link, which may lead
    /// out of it.
    pub fn open(root: &Path) -> Result<Self> {
        let file = root.join(INDEX_FILE);
        if !file.is_file() {
            return Err(AdapterError::LibraryFolder(format!(
                "{}: not a library, since it has no {INDEX_FILE}; `lorakit train-experts` and `lorakit library add` create \
                 one",
                root.display()
            )));
        }
        let index: Index = read_json(&file)?;
        if index.format != FORMAT {
            let (place, format) = (file.display(), index.format);
            return Err(AdapterError::LibraryFolder(format!(
                "{place}: found format {format}; this version of lorakit reads format {FORMAT}"
            )));
        }
        refuse_links(root)?;
        Ok(Self { root: root.to_owned(), index, locks: Vec::new() })
    }

    /// Opens the library at `root`; None if there is none.
    ///
    /// # Errors
    /// As [`open`](Self::open) for one that exists.
    pub fn open_if_exists(root: &Path) -> Result<Option<Self>> {
        let index = root.join(INDEX_FILE);
        let exists = index.try_exists().within_file(&index)?;
        exists.then(|| Self::open(root)).transpose()
    }

    /// Opens the library at `root`, or creates an empty one, named after the folder. A library without a base is opened
    /// for `base`, which is recorded with the first expert or model that is added: a failure before that leaves the
    /// library as it was.
    ///
    /// # Errors
    /// If the library has another base than `base`, if `root` is a folder of other things, or it cannot be written.
    pub fn open_or_create(root: &Path, base: Option<&BaseIdentity>) -> Result<Self> {
        if !root.join(INDEX_FILE).exists() {
            Self::create(root)?;
        }
        let mut library = Self::open(root)?;
        match (&library.index.base, base) {
            (Some(own), Some(given)) => {
                own.ensure_same(given).within(|| format!("the library {}", root.display()))?;
            }
            (None, Some(given)) => library.index.base = Some(given.clone()),
            (_, None) => {}
        }
        Ok(library)
    }

    /// Opens the library at `root` as [`open_or_create`](Self::open_or_create) does, but writes nothing: where there is none,
    /// an empty one that can only be asked what it holds.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub fn open_or_plan(root: &Path, base: Option<&BaseIdentity>) -> Result<Self> {
        if root.join(INDEX_FILE).exists() {
            return Self::open_or_create(root, base);
        }
        refuse_foreign_files(root)?;
        let index = Index { format: FORMAT, name: String::new(), base: base.cloned() };
        Ok(Self { root: root.to_owned(), index, locks: Vec::new() })
    }

    /// The same library, which keeps these locks, and refuses each change after another process has taken one of them over.
    /// Experts, models and routers are checked when all is written and only the rename is left: who takes over removes what
    /// has not been renamed.
    #[must_use]
    pub fn guarded_by(&self, locks: &[&LibraryLock]) -> Self {
        let locks = self.locks.iter().chain(locks.iter().copied()).cloned().collect();
        Self { locks, ..self.clone() }
    }

    /// Checks that no other process has taken over a lock that guards this library.
    ///
    /// # Errors
    /// If another process has.
    pub fn ensure_held(&self) -> Result<()> {
        self.locks.iter().try_for_each(LibraryLock::ensure_held)
    }

    /// Creates an empty library without a base.
    fn create(root: &Path) -> Result<()> {
        refuse_foreign_files(root)?;
        refuse_links(root)?;
        fs::create_dir_all(root.join(EXPERTS)).within(|| format!("{}: cannot be created", root.display()))?;
        // Another process may be creating the same library: the second one finds it complete.
        let lock = library_lock::acquire(root, &mut || true)?;
        if !root.join(INDEX_FILE).exists() {
            let name = || Some(fs::canonicalize(root).ok()?.file_name()?.to_string_lossy().into_owned());
            let index = Index { format: FORMAT, name: name().unwrap_or_else(|| "library".into()), base: None };
            write_json(&root.join(INDEX_FILE), &index)?;
        }
        if let Some(lock) = lock.filter(|lock| lock.needs_recovery(root)) {
            Self::open(root)?.recover()?;
            lock.recovered();
        }
        Ok(())
    }

    /// The base that library.json records now; another process may have recorded one since the library was opened.
    ///
    /// # Errors
    /// If library.json cannot be read.
    pub fn recorded_base(&self) -> Result<Option<BaseIdentity>> {
        Ok(read_json::<Index>(&self.root.join(INDEX_FILE))?.base)
    }

    /// Records the base that the library was opened for, if none is recorded yet. Adding an expert or a model does so.
    ///
    /// # Errors
    /// If another base was recorded in the meantime, another process has taken over, or library.json cannot be written.
    pub fn record_base(&self) -> Result<()> {
        let Some(given) = &self.index.base else { return Ok(()) };
        match self.recorded_base()? {
            Some(own) => own.ensure_same(given).within(|| format!("the library {}", self.root.display())),
            None => {
                self.ensure_held()?;
                write_json(&self.root.join(INDEX_FILE), &self.index)
            }
        }
    }

    /// The library's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the run `id` is or would be.
    ///
    /// # Errors
    /// If `id` is not a valid name ([`ensure_expert_name`]), or the folder is a link.
    pub fn run_folder(&self, id: &str) -> Result<PathBuf> {
        subfolder(&self.root, RUNS, id)
    }

    /// The library's name.
    pub fn name(&self) -> &str {
        &self.index.name
    }

    /// The base that its experts belong to, if it is known: the recorded one, or the one that the library was opened
    /// for.
    pub fn base(&self) -> Option<&BaseIdentity> {
        self.index.base.as_ref()
    }

    /// The names of all experts, sorted. Those whose addition is not complete are not among them.
    ///
    /// # Errors
    /// If the folder cannot be read, or holds a name that no expert can have.
    pub fn expert_names(&self) -> Result<Vec<String>> {
        let folder = self.root.join(EXPERTS);
        let mut names = Vec::new();
        if !folder.exists() && !self.root.join(INDEX_FILE).exists() {
            // It is planned.
            return Ok(names);
        }
        for entry in fs::read_dir(&folder).within_file(&folder)? {
            let entry = entry?;
            if is_hidden(&entry.file_name()) || !entry.path().is_dir() {
                continue;
            }
            let not_utf8 = |name: std::ffi::OsString| {
                AdapterError::ExpertName(format!("{}: {} is not UTF-8", folder.display(), name.display()))
            };
            let name = entry.file_name().into_string().map_err(not_utf8)?;
            ensure_expert_name(&name).within_file(&folder)?;
            names.push(name);
        }
        // Asked afterwards: an addition that has ended since is complete.
        if let Some(added) = self.names_in_addition()? {
            names.retain(|name| !added.contains(name));
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is an expert `name`.
    pub fn contains(&self, name: &str) -> bool {
        ensure_expert_name(name).is_ok() && self.root.join(EXPERTS).join(name).is_dir()
    }

    /// The folder of the expert `name`.
    ///
    /// # Errors
    /// If there is none (the error lists those that exist), or it is a link, which may lead out of the library.
    pub fn expert_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.expert_path(name)?;
        refuse_link(&folder)?;
        if folder.is_dir() {
            return Ok(folder);
        }
        let (root, names) = (self.root.display(), self.expert_names()?);
        let similar = similar_names(name, names.iter().map(String::as_str));
        let listed = match similar.as_slice() {
            [] => format!("it has {}", quote_names(&names)),
            similar => format!("did you mean {}? It has {}", quote_names(similar), quote_names(&names)),
        };
        Err(AdapterError::UnknownExpert(match names.is_empty() {
            true => format!("{root}: no expert `{name}`; it has no experts yet"),
            false => format!("{root}: no expert `{name}`; {listed}"),
        }))
    }

    /// The adapter of the expert `name`. Where another process replaces it at the same time, it is the old one or the new
    /// one as a whole.
    ///
    /// # Errors
    /// If there is none, or it cannot be read; see [`Adapter::read`].
    pub fn adapter(&self, name: &str) -> Result<Adapter> {
        let read = || Adapter::read(&self.expert_folder(name)?).within(|| format!("the expert `{name}`"));
        read_unreplaced(&self.expert_path(name)?, read)
    }

    /// How the expert `name` was made, if that is recorded.
    ///
    /// # Errors
    /// If there is no such expert, or its record cannot be read.
    pub fn record(&self, name: &str) -> Result<Option<ExpertRecord>> {
        self.record_as(name)
    }

    /// The names of the tasks that the expert `name` records; none without a record.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn task_names(&self, name: &str) -> Result<Vec<String>> {
        let record: Option<TaskNames> = self.record_as(name)?;
        Ok(record.into_iter().flat_map(|record| record.tasks).map(|task| task.name).collect())
    }

    /// Some fields of the record of the expert `name`, if there is one. The losses of thousands of steps, which are most of
    /// a record, are skipped where they are not among these fields.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn record_as<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        read_unreplaced(&self.expert_path(name)?, || {
            read_json_if_exists(&self.expert_folder(name)?.join(EXPERT_RECORD_FILE))
        })
    }

    /// The SHA-256 of the weights file of the expert `name`.
    ///
    /// # Errors
    /// If there is no such expert, or its weights cannot be read.
    pub fn weights_sha256(&self, name: &str) -> Result<String> {
        Ok(sha256_of_file(&self.expert_folder(name)?.join(WEIGHTS_FILE))?)
    }

    /// Adds an expert, which appears whole. The record's `sha256` is set to that of the weights.
    ///
    /// # Errors
    /// If the name is not a valid one or is taken, or the folder cannot be written.
    pub fn add(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        self.add_all(&[(name, adapter, record)])
    }

    /// Adds an expert, but does not record its base.
    pub(super) fn insert(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        let folder = self.free_path(name)?;
        atomic::create_folder(&folder, |folder| self.fill(folder, adapter, record))
    }

    /// As [`insert`](Self::insert), but does not sync its folder either.
    pub(super) fn insert_unsynced(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        let folder = self.free_path(name)?;
        atomic::create_folder_unsynced(&folder, |folder| self.fill(folder, adapter, record))
    }

    /// Where the expert `name` will be, which does not exist.
    fn free_path(&self, name: &str) -> Result<PathBuf> {
        let folder = self.expert_path(name)?;
        refuse_link(&folder)?;
        if folder.exists() {
            return Err(AdapterError::ExpertExists { root: self.root.clone(), name: name.to_owned() });
        }
        Ok(folder)
    }

    /// Writes an expert into `folder`, which is renamed next.
    fn fill(&self, folder: &Path, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        write_expert(folder, &adapter.clone().with_base_name(self.base()), record)?;
        self.ensure_held()
    }

    /// Adds an expert, replacing one of that name.
    ///
    /// # Errors
    /// If the name is not a valid one, or the folder cannot be written.
    pub fn replace(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        let folder = self.expert_path(name)?;
        refuse_link(&folder)?;
        // First: a kill must not leave an expert without its base.
        self.record_base()?;
        atomic::replace_folder(&folder, |folder| self.fill(folder, adapter, record))
    }

    /// Removes an expert.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.ensure_held()?;
        Ok(atomic::remove_folder(&self.expert_folder(name)?)?)
    }

    /// Where the expert `name` is or would be.
    pub(super) fn expert_path(&self, name: &str) -> Result<PathBuf> {
        ensure_expert_name(name)?;
        Ok(self.root.join(EXPERTS).join(name))
    }
}

/// What `read` reads in a folder, again where the folder was replaced meanwhile: a file of the old one and a file of the new
/// one do not belong together, and between the two renames of a replacement there is neither.
fn read_unreplaced<T>(folder: &Path, read: impl Fn() -> Result<T>) -> Result<T> {
    const ATTEMPTS: usize = 40;
    for _ in 1..ATTEMPTS {
        let before = folder_id(folder);
        let result = read();
        // Asked before the folder is: who removes the old one has put the new one in place.
        let is_being_replaced = atomic::is_being_replaced(folder);
        if folder_id(folder) == before && (before.is_some() || !is_being_replaced) {
            return result;
        }
        sleep(Duration::from_millis(5));
    }
    read()
}

/// What tells a folder from the one that takes its place; None where there is none.
fn folder_id(folder: &Path) -> Option<(u64, Option<SystemTime>)> {
    let found = fs::metadata(folder).ok()?;
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(&found);
    #[cfg(not(unix))]
    let number = 0;
    Some((number, found.modified().ok()))
}

/// Refuses to create a library in a folder that holds other things.
fn refuse_foreign_files(root: &Path) -> Result<()> {
    if root.join(INDEX_FILE).exists() {
        return Ok(());
    }
    let Ok(mut entries) = fs::read_dir(root) else { return Ok(()) };
    // Another process may be creating the same library: its lock, the experts' folder and, since the line above, the
    // index.
    let expected = |name: &OsStr| is_hidden(name) || name == EXPERTS || name == INDEX_FILE;
    match entries.find_map(|entry| entry.ok().filter(|entry| !expected(&entry.file_name()))) {
        None => Ok(()),
        Some(entry) => Err(AdapterError::LibraryFolder(format!(
            "{}: a folder that is not a library, since it has no {INDEX_FILE} but holds {}; name an empty or new folder",
            root.display(),
            entry.file_name().display()
        ))),
    }
}

/// Writes an expert's files into `folder` without syncing them: the adapter, and, if there is a record, expert.json, whose
/// `sha256` is set to that of the weights.
///
/// # Errors
/// If the adapter has no modules, or a file cannot be written.
pub fn write_expert(folder: &Path, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
    adapter.write_files(folder)?;
    let Some(record) = record else { return Ok(()) };
    let sha256 = sha256_of_file(&folder.join(WEIGHTS_FILE))?;
    write_json_unsynced(&folder.join(EXPERT_RECORD_FILE), &ExpertRecord { sha256, ..record.clone() })
}
