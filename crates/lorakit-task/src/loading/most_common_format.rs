//! Which files of a split are read where they are of several formats, and so may hold the same rows: those of the most common.

use crate::source::file_extension::has_extension;

/// Extensions of data files with what `datasets` reads them with, in the order of its choice among equally frequent ones.
const EXTENSIONS: [(&str, &str); 6] = [
    (".parquet", "parquet"),
    (".jsonl", "json"),
    (".json", "json"),
    (".csv", "csv"),
    (".tsv", "csv"),
    (".arrow", "arrow"),
];

/// The files of a split that are read: those of the most frequent extension, as Hugging Face's `datasets` decides, and, as
/// there, those that it reads alike (JSON and JSON lines, CSV and TSV). Of equally frequent extensions the first of Parquet,
/// JSON lines, JSON, CSV, TSV and Arrow counts.
pub fn of_most_common_format<T>(files: Vec<T>, name: impl Fn(&T) -> String) -> Vec<T> {
    let extension = |file: &T| {
        let name = name(file);
        EXTENSIONS.iter().position(|(extension, _)| has_extension(&name, extension))
    };
    let count = |index: usize| files.iter().filter(|file| extension(file) == Some(index)).count();
    // Of equal counts, `max_by_key` returns the last.
    let most = (0..EXTENSIONS.len()).rev().max_by_key(|&index| count(index)).map(|index| EXTENSIONS[index].1);
    let is_read = |file: &T| extension(file).map(|index| EXTENSIONS[index].1) == most;
    let read: Vec<bool> = files.iter().map(is_read).collect();
    files.into_iter().zip(read).filter_map(|(file, read)| read.then_some(file)).collect()
}

/// Whether a file has the extension of a data file.
pub fn has_data_extension(name: &str) -> bool {
    EXTENSIONS.iter().any(|(extension, _)| has_extension(name, extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str]) -> Vec<String> {
        of_most_common_format(names.iter().map(|name| (*name).to_owned()).collect(), Clone::clone)
    }

    #[test]
    fn the_most_frequent_extension_counts_and_of_equals_the_first() {
        assert_eq!(read(&["train.csv", "train.jsonl"]), ["train.jsonl"]);
        assert_eq!(read(&["train.jsonl.gz", "train.parquet"]), ["train.parquet"]);
        assert_eq!(read(&["a.csv", "b.csv", "train.parquet"]), ["a.csv", "b.csv"]);
        assert_eq!(read(&["a.json", "b.jsonl", "c.csv"]), ["a.json", "b.jsonl"]);
        assert_eq!(read(&["a.tsv"]), ["a.tsv"]);
    }
}
