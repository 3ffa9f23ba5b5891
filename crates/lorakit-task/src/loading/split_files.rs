//! Data files whose splits are known, such as those of a dataset on the Hub.

use std::path::PathBuf;

use crate::split::Split;

/// The files of a task, by the split that they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitFiles {
    /// The task's name.
    pub name: String,
    /// Files of train rows. What of validation and test has no files is split off them by hash.
    pub train: Vec<PathBuf>,
    /// Files of validation rows.
    pub validation: Vec<PathBuf>,
    /// Files of test rows.
    pub test: Vec<PathBuf>,
}

/// A data file, with the split it is for; None: split by hash.
pub(crate) type SplitFile = (Option<Split>, PathBuf);

impl SplitFiles {
    /// The files, each with the split it is for.
    pub(crate) fn by_split(&self) -> Vec<SplitFile> {
        // What has no files is needed sooner or later, and is split off the train rows.
        let whole = !self.validation.is_empty() && !self.test.is_empty();
        let splits = [
            (whole.then_some(Split::Train), &self.train),
            (Some(Split::Validation), &self.validation),
            (Some(Split::Test), &self.test),
        ];
        splits.into_iter().flat_map(|(split, files)| files.iter().map(move |file| (split, file.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::loading::task_loader::TaskLoader;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn write(folder: &Path, name: &str, rows: std::ops::Range<usize>) -> PathBuf {
        let lines: Vec<String> = rows.map(|n| format!(r#"{{"input": "{n}", "output": "x"}}"#)).collect();
        std::fs::write(folder.join(name), lines.join("\n")).unwrap();
        folder.join(name)
    }

    #[test]
    fn splits_are_those_of_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name, rows| write(folder.path(), name, rows);
        let (train, test) = (vec![file("0.jsonl", 0..50), file("1.jsonl", 50..100)], vec![file("t.jsonl", 100..107)]);
        let counts = |validation: Vec<PathBuf>| {
            let files = SplitFiles { name: "d".into(), train: train.clone(), validation, test: test.clone() };
            let downloads = BTreeMap::from([("hub:datasets/a/d".to_string(), files)]);
            let loader = TaskLoader { downloads, ..TaskLoader::default() };
            let task = loader.load(&["x=hub:datasets/a/d".into()]).unwrap().remove(0);
            assert_eq!((task.name.as_str(), task.path.to_str()), ("x", Some("hub:datasets/a/d")));
            [Split::Train, Split::Validation, Split::Test].map(|split| task.count(split))
        };
        let [kept, split_off, 7] = counts(Vec::new()) else { panic!("the test file's rows are the test rows") };
        assert_eq!(kept + split_off, 100);
        assert!(split_off > 0 && split_off < 25);
        assert_eq!(counts(vec![file("v.jsonl", 200..203)]), [100, 3, 7]);
    }
}
