//! The files of a dataset on the Hub: `hub:datasets/ORG/NAME[@REV][:CONFIG]`.
//!
//! Without a revision these are the Parquet files into which the Hub converts most datasets (its branch
//! `refs/convert/parquet`, as `CONFIG/SPLIT/0000.parquet`), else the data files of the repository itself, whose splits are
//! named by its card or by the files' names, as in Hugging Face's `datasets`. Of a large dataset the Hub converts only the
//! first part (`CONFIG/partial-SPLIT`), which is never used.

use super::glob;
use super::hub_failure::HubFailure;
use super::repository::{Repository, RepositoryKind};
use super::snapshot::{NeededFiles, RemoteSnapshot, snapshot};
use crate::command_context::CommandContext;
use anyhow::{Context as _, Result, ensure};
use lorakit_task::{CARD, SplitFiles, card_lists_configs, describes_dataset, of_most_common_format};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

const CONVERTED: &str = "refs/convert/parquet";

/// Extensions of the data files that tasks are read from.
const EXTENSIONS: [&str; 5] = [".parquet", ".jsonl", ".json", ".csv", ".tsv"];

/// The words for each split in names of files, folders and splits.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Downloads what follows `hub:datasets/`.
pub fn fetch(spec: &str, context: &CommandContext) -> Result<SplitFiles> {
    let (repository, config) = match spec.split_once(':') {
        Some((repository, config)) => (repository, Some(config).filter(|config| !config.is_empty())),
        None => (spec, None),
    };
    let parsed = Repository::parse(RepositoryKind::Dataset, repository).filter(|(_, folder)| folder.is_empty());
    let (repository, _) =
        parsed.with_context(|| format!("hub:datasets/{spec}: expected hub:datasets/ORG/NAME[@REV][:CONFIG]"))?;
    let files = DatasetFiles { config: config.map(str::to_owned), chosen: RefCell::new(None) };
    let found = match repository.revision {
        Some(_) => snapshot(&repository, &files, context),
        None => match snapshot(&repository.at(CONVERTED), &files, context) {
            Err(error) if error.downcast_ref::<PartialConversion>().is_some() => {
                snapshot(&repository, &files, context).with_context(|| format!("{error:#}"))
            }
            Err(error) if is_absent(&error) => snapshot(&repository, &files, context),
            found => found,
        },
    };
    let folder = found?;
    let chosen = files.chosen_in(&folder).with_context(|| repository.to_string())?;
    let own = repository.name.rsplit('/').next().unwrap_or_default();
    let name = config.map_or_else(|| own.to_owned(), |config| format!("{own}-{config}"));
    let paths = |split: &str| chosen.get(split).into_iter().flatten().map(|file| folder.join(file)).collect();
    Ok(SplitFiles { name, train: paths("train"), validation: paths("validation"), test: paths("test") })
}

/// Whether the Hub or the cache has no conversion.
fn is_absent(error: &anyhow::Error) -> bool {
    use HubFailure::{NoNetwork, NoRepository, NoRevision, Offline};
    matches!(error.downcast_ref(), Some(NoRevision(_) | NoRepository(_) | NoNetwork { .. } | Offline))
}

/// A configuration of which the Hub converted only a part.
#[derive(Debug)]
struct PartialConversion {
    config: String,
    split: String,
}

impl fmt::Display for PartialConversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, split } = self;
        write!(
            f,
            "the Hub's conversion of `{config}` to Parquet has only a part of it (`{split}`); expected data files in the \
             repository itself"
        )
    }
}

impl std::error::Error for PartialConversion {}

/// The data files of one configuration.
struct DatasetFiles {
    config: Option<String>,
    /// The files that were downloaded, once they were.
    chosen: RefCell<Option<Splits>>,
}

/// Files by the split that they are for.
type Splits = BTreeMap<&'static str, BTreeSet<String>>;

impl NeededFiles for DatasetFiles {
    fn download(&self, remote: &RemoteSnapshot<'_>) -> Result<()> {
        let files: Vec<String> = remote.info.files().map(str::to_owned).collect();
        let chosen = self.choose(&files, &remote.info.card)?;
        let card = files.iter().find(|file| *file == CARD);
        for file in chosen.values().flatten().chain(card) {
            remote.get(file)?;
        }
        *self.chosen.borrow_mut() = Some(chosen);
        Ok(())
    }

    fn missing(&self, folder: &Path) -> Option<String> {
        self.chosen_in(folder).err().map(|error| format!("data files ({error:#})"))
    }

    /// The files that are there may be some of those of the commit.
    fn suffices(&self, _: &Path) -> bool {
        false
    }
}

impl DatasetFiles {
    /// The files that were downloaded, or those of an earlier download to `folder`.
    fn chosen_in(&self, folder: &Path) -> Result<Splits> {
        if let Some(chosen) = self.chosen.borrow().clone() {
            return Ok(chosen);
        }
        ensure!(
            !card_lists_configs(folder),
            "its card lists configurations, which only the Hub can resolve; try again with access to it"
        );
        self.choose(&list(folder)?, &Value::Null)
    }

    /// The files of the configuration among `files`; `card` is the metadata of the dataset's README.
    fn choose(&self, files: &[String], card: &Value) -> Result<Splits> {
        let files: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_data(file)).collect();
        ensure!(!files.is_empty(), "no file that ends in {}", EXTENSIONS.join(", "));
        if let Some(configs) = card["configs"].as_array().filter(|configs| !configs.is_empty()) {
            return self.of_card(&files, configs);
        }
        match converted(&files) {
            Some(configs) => self.of_conversion(configs),
            None => {
                let config = self.config.as_deref().filter(|config| *config != "default");
                ensure!(
                    config.is_none(),
                    "`{}`: the dataset has one configuration; leave it out",
                    config.unwrap_or_default()
                );
                Ok(by_name(&files))
            }
        }
    }

    /// The configuration to use of those that there are.
    fn pick<'a>(&self, names: &[&'a str]) -> Result<&'a str> {
        let default = || match names {
            [only] => Some(*only),
            several => several.iter().copied().find(|name| *name == "default"),
        };
        let wanted = match &self.config {
            Some(config) => names.iter().copied().find(|name| name == config),
            None => default(),
        };
        wanted.with_context(|| match &self.config {
            Some(config) => format!("no configuration `{config}`; there are {}", names.join(", ")),
            None => format!("several configurations: choose one with :CONFIG of {}", names.join(", ")),
        })
    }

    fn of_conversion(&self, mut configs: BTreeMap<&str, BTreeMap<&str, BTreeSet<String>>>) -> Result<Splits> {
        let config = self.pick(&configs.keys().copied().collect::<Vec<_>>())?;
        let mut splits = Splits::new();
        for (name, files) in configs.remove(config).unwrap_or_default() {
            if name.starts_with("partial-") {
                return Err(PartialConversion { config: config.to_owned(), split: name.to_owned() }.into());
            }
            let split =
                split_of(name).with_context(|| format!("split `{name}` is none of train, validation and test"))?;
            let other = splits.insert(split, files).is_some();
            ensure!(!other, "several {split} splits, of which `{name}` is one; download the one you want as a file");
        }
        Ok(splits)
    }

    fn of_card(&self, files: &[&str], configs: &[Value]) -> Result<Splits> {
        let names: Vec<&str> = configs.iter().filter_map(|config| config["config_name"].as_str()).collect();
        let default = configs.iter().find(|config| self.config.is_none() && config["default"] == true);
        let name = match default.and_then(|config| config["config_name"].as_str()) {
            Some(name) => name,
            None => self.pick(&names)?,
        };
        let config = configs.iter().find(|config| config["config_name"] == name).unwrap_or(&Value::Null);
        let folder = config["data_dir"].as_str().unwrap_or_default();
        let within: Vec<&str> = files.iter().filter_map(|file| in_folder(file, folder)).collect();
        ensure!(!within.is_empty(), "configuration `{name}`: no data file in the `data_dir` of its card, `{folder}`");
        let splits = match &config["data_files"] {
            Value::Array(entries) => named_by_card(entries, &within, name)?,
            Value::Null => by_name(&within),
            one => named_by_card(std::slice::from_ref(one), &within, name)?,
        };
        let is_of = |own: &BTreeSet<String>, file: &str| in_folder(file, folder).is_some_and(|file| own.contains(file));
        let whole = |own: BTreeSet<String>| -> BTreeSet<String> {
            files.iter().filter(|file| is_of(&own, file)).map(|file| (*file).to_owned()).collect()
        };
        Ok(splits.into_iter().map(|(split, own)| (split, whole(own))).collect())
    }
}

/// The path of a file within a folder; None if it is not in it. All are in the folder of no name.
fn in_folder<'a>(file: &'a str, folder: &str) -> Option<&'a str> {
    match folder.trim_start_matches("./").trim_matches('/') {
        "" | "." => Some(file),
        folder => file.strip_prefix(folder)?.strip_prefix('/'),
    }
}

/// The files of each split, as the `data_files` of a dataset card name them.
fn named_by_card(entries: &[Value], files: &[&str], name: &str) -> Result<Splits> {
    let mut splits = Splits::new();
    for entry in entries {
        let (split, paths) = match entry {
            Value::Object(entry) => (entry.get("split").and_then(Value::as_str), &entry["path"]),
            paths => (None, paths),
        };
        let is_named = split.is_some();
        let name = split.unwrap_or("train");
        let split = split_of(name).with_context(|| format!("split `{name}` is none of train, validation and test"))?;
        ensure!(
            !is_named || !splits.contains_key(split),
            "several {split} splits, of which `{name}` is one; download the one you want as a file"
        );
        let patterns: Vec<&str> = match paths {
            Value::Array(paths) => paths.iter().filter_map(Value::as_str).collect(),
            path => path.as_str().into_iter().collect(),
        };
        let fits = |file: &&&str| patterns.iter().any(|pattern| glob::matches(pattern, file));
        splits.entry(split).or_default().extend(files.iter().filter(fits).map(|file| (**file).to_owned()));
    }
    ensure!(
        splits.values().all(|files| !files.is_empty()),
        "configuration `{name}`: its card names no file that there is"
    );
    Ok(splits)
}

/// Whether a task can be read from a file.
fn is_data(file: &str) -> bool {
    let file = file.to_lowercase();
    let plain = file.strip_suffix(".gz").unwrap_or(&file);
    EXTENSIONS.iter().any(|extension| plain.ends_with(extension))
        && !describes_dataset(file.rsplit('/').next().unwrap_or_default())
        && !file.starts_with('.')
}

/// Files by configuration and split, if all are `CONFIG/SPLIT/NUMBER.parquet`.
fn converted<'a>(files: &[&'a str]) -> Option<BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<String>>>> {
    let mut configs: BTreeMap<&str, BTreeMap<&str, BTreeSet<String>>> = BTreeMap::new();
    for file in files {
        let parts: Vec<&str> = file.split('/').collect();
        let [config, split, name] = parts[..] else { return None };
        let number = name.strip_suffix(".parquet")?;
        if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit()) {
            return None;
        }
        configs.entry(config).or_default().entry(split).or_default().insert((*file).to_owned());
    }
    Some(configs)
}

/// Files by the split that their path names. If some name none, they are no part of the dataset; if all, all are train rows.
/// Of those of a split in several formats one is read.
fn by_name(files: &[&str]) -> Splits {
    let mut splits = Splits::new();
    for file in files {
        if let Some(split) = split_of(file) {
            splits.entry(split).or_default().insert((*file).to_owned());
        }
    }
    if splits.is_empty() {
        splits.insert("train", files.iter().map(|file| (*file).to_owned()).collect());
    }
    let of_one = |files: BTreeSet<String>| of_most_common_format(files.into_iter().collect(), Clone::clone);
    splits.into_iter().map(|(split, files)| (split, of_one(files).into_iter().collect())).collect()
}

/// The split that a name has a word for; the last word counts.
fn split_of(name: &str) -> Option<&'static str> {
    let words = name.split(|c: char| !c.is_ascii_alphabetic()).map(str::to_lowercase);
    let split = |word: String| WORDS.iter().find(|(_, words)| words.contains(&word.as_str())).map(|(split, _)| *split);
    words.filter_map(split).next_back()
}

/// The paths of the files below a folder, within it.
fn list(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(within) = folders.pop() {
        let entries = std::fs::read_dir(folder.join(&within)).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let name = within.join(entry?.file_name());
            if folder.join(&name).is_dir() {
                folders.push(name);
            } else {
                files.push(name.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn choose(config: Option<&str>, files: &[&str], card: Value) -> Result<Vec<String>> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        let splits =
            DatasetFiles { config: config.map(str::to_owned), chosen: RefCell::new(None) }.choose(&files, &card)?;
        let line = |(split, files): (&str, BTreeSet<String>)| {
            format!("{split}: {}", files.into_iter().collect::<Vec<_>>().join(" "))
        };
        Ok(splits.into_iter().map(line).collect())
    }

    #[test]
    fn a_conversion_has_folders_of_configurations_and_splits() {
        let files =
            ["main/train/0000.parquet", "main/train/0001.parquet", "main/test/0000.parquet", "x/train/0000.parquet"];
        let main = choose(Some("main"), &files, Value::Null).unwrap();
        assert_eq!(main, ["test: main/test/0000.parquet", "train: main/train/0000.parquet main/train/0001.parquet"]);
        assert!(
            choose(None, &files, Value::Null).unwrap_err().to_string().contains("choose one with :CONFIG of main, x")
        );
        assert!(choose(Some("y"), &files, Value::Null).unwrap_err().to_string().contains("there are main, x"));
        let two = ["a/train_sft/0000.parquet", "a/train_gen/0000.parquet"];
        assert!(choose(None, &two, Value::Null).unwrap_err().to_string().contains("several train splits"));
        assert_eq!(choose(None, &["a/dev/0000.parquet"], Value::Null).unwrap(), ["validation: a/dev/0000.parquet"]);
        let partial = ["a/partial-train/0000.parquet", "a/test/0000.parquet", "b/train/0000.parquet"];
        let error = choose(Some("a"), &partial, Value::Null).unwrap_err();
        assert!(error.to_string().contains("only a part of it (`partial-train`)"), "{error}");
        assert_eq!(choose(Some("b"), &partial, Value::Null).unwrap(), ["train: b/train/0000.parquet"]);
    }

    #[test]
    fn data_files_are_of_the_split_that_they_name() {
        let files = ["README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"];
        let named = choose(None, &files, Value::Null).unwrap();
        assert_eq!(
            named,
            ["train: data/train-00000-of-00001.parquet", "validation: data/validation-00000-of-00001.parquet"]
        );
        assert_eq!(choose(None, &["a.jsonl", "b.jsonl"], Value::Null).unwrap(), ["train: a.jsonl b.jsonl"]);
        assert_eq!(choose(None, &["test.csv.gz", "train.csv.gz"], Value::Null).unwrap().len(), 2);
        let upper = choose(None, &["TEST.CSV", "train.csv.GZ"], Value::Null).unwrap();
        assert_eq!(upper, ["test: TEST.CSV", "train: train.csv.GZ"]);
        assert!(choose(Some("x"), &["a.jsonl"], Value::Null).unwrap_err().to_string().contains("one configuration"));
        assert!(choose(None, &["README.md"], Value::Null).unwrap_err().to_string().contains("no file that ends in"));
    }

    #[test]
    fn a_configuration_has_the_files_of_its_folder() {
        let card = json!({"configs": [
            {"config_name": "en", "data_dir": "./en/"},
            {"config_name": "de", "data_dir": "de", "data_files": [{"split": "test", "path": "t*.jsonl"}]},
            {"config_name": "fr", "data_dir": "fr"},
        ]});
        let files = ["en/train.jsonl", "en/test.jsonl", "de/train.jsonl", "de/t2.jsonl", "t1.jsonl", "end/train.jsonl"];
        let of = |config| choose(Some(config), &files, card.clone());
        assert_eq!(of("en").unwrap(), ["test: en/test.jsonl", "train: en/train.jsonl"]);
        assert_eq!(of("de").unwrap(), ["test: de/t2.jsonl de/train.jsonl"]);
        assert!(of("fr").unwrap_err().to_string().contains("no data file in the `data_dir` of its card, `fr`"));
    }

    #[test]
    fn of_the_same_rows_in_several_formats_one_is_read() {
        let files = ["data/train.csv", "data/train.jsonl", "data/test.csv"];
        assert_eq!(choose(None, &files, Value::Null).unwrap(), ["test: data/test.csv", "train: data/train.jsonl"]);
    }

    #[test]
    fn the_card_names_files_first() {
        let card = json!({"configs": [
            {"config_name": "a", "data_files": [{"split": "train", "path": "a/*.jsonl"}, {"split": "test", "path": ["t.jsonl"]}]},
            {"config_name": "b", "data_files": "deep/**/x.jsonl", "default": true},
        ]});
        let files = ["a/1.jsonl", "a/b/2.jsonl", "t.jsonl", "deep/x.jsonl", "deep/er/x.jsonl", "deep/er/ax.jsonl"];
        assert_eq!(choose(Some("a"), &files, card.clone()).unwrap(), ["test: t.jsonl", "train: a/1.jsonl"]);
        assert_eq!(choose(None, &files, card.clone()).unwrap(), ["train: deep/er/x.jsonl deep/x.jsonl"]);
        assert!(choose(Some("c"), &files, card).unwrap_err().to_string().contains("there are a, b"));
        let two = json!({"configs": [{"config_name": "default", "data_files": [
            {"split": "train_sft", "path": "a/1.jsonl"}, {"split": "train_gen", "path": "t.jsonl"},
        ]}]});
        let error = choose(None, &files, two).unwrap_err().to_string();
        assert!(error.contains("several train splits, of which `train_gen` is one"), "{error}");
        let texts = json!({"configs": [{"config_name": "default", "data_files": ["a/1.jsonl", "t.jsonl"]}]});
        assert_eq!(choose(None, &files, texts).unwrap(), ["train: a/1.jsonl t.jsonl"]);
    }
}
