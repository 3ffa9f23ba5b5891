//! A library: a folder of experts, each a PEFT folder, and what is known of how they came about.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::library::base_identity::BaseIdentity;
use crate::library::expert_name::ensure_expert_name;
use crate::library::expert_record::ExpertRecord;
use crate::library::json_file::{read_json, write_json};
use crate::library::library_layout::{
    EXPERTS, INDEX_FILE, RECORD_FILE, RUNS, is_hidden, refuse_link, refuse_links, subfolder,
};
use crate::library::library_lock::LibraryLock;
use crate::library::similar_names::similar_names;
use crate::name_list::quote_names;
use crate::peft::adapter_files::WEIGHTS_FILE;
use lorakit_format::atomic;
use lorakit_format::hash::sha256_of_file;

/// The version of the layout of library.json and of the folders beside it.
const FORMAT: u32 = 1;

/// An opened library. Opening and listing read no weights.
///
/// Reading needs no lock: experts appear and disappear whole. Whoever changes a library holds
/// [`lock`](Self::lock) while doing so.
#[derive(Clone, Debug)]
pub struct Library {
    root: PathBuf,
    index: Index,
}

/// library.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Index {
    format: u32,
    name: String,
    base: Option<BaseIdentity>,
}

impl Library {
    /// Opens the library at `root`.
    ///
    /// # Errors
    /// If there is none, it was written by a newer version of the format, or a part of it is a link, which may lead
    /// anywhere.
    pub fn open(root: &Path) -> Result<Self> {
        let file = root.join(INDEX_FILE);
        ensure!(
            file.is_file(),
            "{}: no library, for it has no {INDEX_FILE}; `lorakit train-experts` and `lorakit \
             library add` make one",
            root.display()
        );
        let index: Index = read_json(&file)?;
        ensure!(
            index.format == FORMAT,
            "{}: found format {}; this version of lorakit reads format {FORMAT}",
            file.display(),
            index.format
        );
        refuse_links(root)?;
        Ok(Self { root: root.to_owned(), index })
    }

    /// Opens the library at `root`, or makes an empty one, named after the folder. A library
    /// without a base is opened for `base`, which becomes its own with the first expert or model
    /// that is put in: what fails before that leaves the library as it was.
    ///
    /// # Errors
    /// If the library has another base than `base`, if `root` is a folder of other things, or
    /// cannot be written.
    pub fn open_or_create(root: &Path, base: Option<&BaseIdentity>) -> Result<Self> {
        if !root.join(INDEX_FILE).exists() {
            Self::make(root)?;
        }
        let mut library = Self::open(root)?;
        match (&library.index.base, base) {
            (Some(own), Some(given)) => {
                own.ensure_same(given).with_context(|| format!("the library {}", root.display()))?;
            }
            (None, Some(given)) => library.index.base = Some(given.clone()),
            (_, None) => {}
        }
        Ok(library)
    }

    /// Makes an empty library without a base.
    fn make(root: &Path) -> Result<()> {
        ensure_empty(root)?;
        refuse_links(root)?;
        fs::create_dir_all(root.join(EXPERTS)).with_context(|| format!("{}: cannot be made", root.display()))?;
        // Another process may be making the same library: whoever comes second finds it made.
        let _lock = LibraryLock::acquire(root)?;
        if root.join(INDEX_FILE).exists() {
            return Ok(());
        }
        let name = || Some(fs::canonicalize(root).ok()?.file_name()?.to_string_lossy().into_owned());
        let index = Index { format: FORMAT, name: name().unwrap_or_else(|| "library".into()), base: None };
        write_json(&root.join(INDEX_FILE), &index)
    }

    /// The base that library.json records by now; another process may have recorded one since the
    /// library was opened.
    ///
    /// # Errors
    /// If library.json cannot be read.
    pub fn recorded_base(&self) -> Result<Option<BaseIdentity>> {
        Ok(read_json::<Index>(&self.root.join(INDEX_FILE))?.base)
    }

    /// Records the base that the library was opened for, where none is recorded yet. Whatever puts
    /// an expert or a model in does so by itself.
    ///
    /// # Errors
    /// If another base was recorded in the meantime, or library.json cannot be written.
    pub fn record_base(&self) -> Result<()> {
        let Some(given) = &self.index.base else { return Ok(()) };
        match self.recorded_base()? {
            Some(own) => own.ensure_same(given).with_context(|| format!("the library {}", self.root.display())),
            None => write_json(&self.root.join(INDEX_FILE), &self.index),
        }
    }

    /// The library's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the run `id` is or would be.
    ///
    /// # Errors
    /// If `id` is no name for a folder, or the folder is a link.
    pub fn run_folder(&self, id: &str) -> Result<PathBuf> {
        subfolder(&self.root, RUNS, id)
    }

    /// The library's name.
    pub fn name(&self) -> &str {
        &self.index.name
    }

    /// The base that its experts belong to, where one is known: recorded, or the one that the
    /// library was opened for.
    pub fn base(&self) -> Option<&BaseIdentity> {
        self.index.base.as_ref()
    }

    /// The names of all experts, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read, or holds a name that no expert can have.
    pub fn expert_names(&self) -> Result<Vec<String>> {
        let folder = self.root.join(EXPERTS);
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if is_hidden(&entry.file_name()) || !entry.path().is_dir() {
                continue;
            }
            let name = entry.file_name().into_string();
            let name = name.map_err(|name| anyhow::anyhow!("{}: {} is no UTF-8", folder.display(), name.display()))?;
            ensure_expert_name(&name).with_context(|| folder.display().to_string())?;
            names.push(name);
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
    /// If there is none; the error lists those that there are. Also if it is a link, which may lead
    /// anywhere.
    pub fn expert_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.place(name)?;
        refuse_link(&folder)?;
        if !folder.is_dir() {
            let names = self.expert_names()?;
            let near = similar_names(name, &names);
            let meant = if near.is_empty() { String::new() } else { format!(" did you mean {}?", quote_names(&near)) };
            ensure!(!names.is_empty(), "{}: no expert `{name}`; it has no experts yet", self.root.display());
            bail!("{}: no expert `{name}`;{meant} it has {}", self.root.display(), quote_names(&names));
        }
        Ok(folder)
    }

    /// The adapter of the expert `name`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read; see [`Adapter::read`].
    pub fn adapter(&self, name: &str) -> Result<Adapter> {
        Adapter::read(&self.expert_folder(name)?).with_context(|| format!("the expert `{name}`"))
    }

    /// How the expert `name` came about, where that is recorded.
    ///
    /// # Errors
    /// If there is no such expert, or its record cannot be read.
    pub fn record(&self, name: &str) -> Result<Option<ExpertRecord>> {
        let file = self.expert_folder(name)?.join(RECORD_FILE);
        if file.exists() { read_json(&file).map(Some) } else { Ok(None) }
    }

    /// The SHA-256 of the weights file of the expert `name`.
    ///
    /// # Errors
    /// If there is no such expert, or its weights cannot be read.
    pub fn weights_sha256(&self, name: &str) -> Result<String> {
        Ok(sha256_of_file(&self.expert_folder(name)?.join(WEIGHTS_FILE))?)
    }

    /// Adds an expert, which appears whole. The record's `sha256` is set to that of the weights as
    /// written.
    ///
    /// # Errors
    /// If the name is none for an expert or is taken, or the folder cannot be written.
    pub fn add(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        self.insert(name, adapter, record)?;
        self.record_base()
    }

    /// Adds an expert and records nothing of its base.
    pub(crate) fn insert(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        let place = self.place(name)?;
        refuse_link(&place)?;
        ensure!(
            !place.exists(),
            "{}: the expert `{name}` exists already; give another name, or remove it first",
            self.root.display()
        );
        atomic::create_folder(&place, |folder| write_expert(folder, adapter, record))
    }

    /// Adds an expert in place of the one of that name, if there is one.
    ///
    /// # Errors
    /// If the name is none for an expert, or the folder cannot be written.
    pub fn replace(&self, name: &str, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
        refuse_link(&self.place(name)?)?;
        atomic::replace_folder(&self.place(name)?, |folder| write_expert(folder, adapter, record))?;
        self.record_base()
    }

    /// Removes an expert.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        Ok(atomic::remove_folder(&self.expert_folder(name)?)?)
    }

    /// Where the expert `name` is or would be.
    fn place(&self, name: &str) -> Result<PathBuf> {
        ensure_expert_name(name)?;
        Ok(self.root.join(EXPERTS).join(name))
    }
}

/// That the folder of a new library holds nothing else.
fn ensure_empty(root: &Path) -> Result<()> {
    if root.join(INDEX_FILE).exists() {
        return Ok(());
    }
    let Ok(mut entries) = fs::read_dir(root) else { return Ok(()) };
    // Another process may be making the same library: its lock, the experts' folder and, since the line above, the index.
    let expected = |name: &OsStr| is_hidden(name) || name == EXPERTS || name == INDEX_FILE;
    let foreign = entries.find_map(|entry| entry.ok().filter(|entry| !expected(&entry.file_name())));
    if let Some(entry) = foreign {
        bail!(
            "{}: a folder that is no library, for it has no {INDEX_FILE} but holds {}; \
             name an empty or new folder",
            root.display(),
            entry.file_name().display()
        );
    }
    Ok(())
}

/// Writes an expert's files into `folder`, which exists: the adapter, and expert.json where there is a record, whose
/// `sha256` is set to that of the weights as written.
///
/// # Errors
/// If the adapter has no modules, or a file cannot be written.
pub fn write_expert(folder: &Path, adapter: &Adapter, record: Option<&ExpertRecord>) -> Result<()> {
    adapter.write_files(folder)?;
    let Some(record) = record else { return Ok(()) };
    let sha256 = sha256_of_file(&folder.join(WEIGHTS_FILE))?;
    write_json(&folder.join(RECORD_FILE), &ExpertRecord { sha256, ..record.clone() })
}
