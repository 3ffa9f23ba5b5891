//! A model in one GGUF file or in several, as llama.cpp's `gguf-split` writes them: `NAME-00001-of-00003.gguf` has the
//! metadata, and each file some of the tensors.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use crate::error::FormatError;
use crate::gguf::gguf_file::{GgufEntry, GgufFile};
use crate::gguf::gguf_value::GgufValue;

/// The keys of a file's index and the number of files, and of the number of tensors in all files.
const INDEX_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";

/// The files of one model.
#[derive(Clone, Debug)]
pub struct GgufShards {
    files: Vec<GgufFile>,
}

impl GgufShards {
    /// Opens the file at `path` and, where it is one of several, the others beside it.
    ///
    /// # Errors
    /// If a file is missing or damaged, is of another model, or holds a tensor that another one holds too.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let named = GgufFile::open(path)?;
        let count = number(&named, COUNT_KEY)?.unwrap_or(1);
        if count <= 1 {
            return Ok(Self { files: vec![named] });
        }
        let name = path.file_name().and_then(OsStr::to_str);
        let names = name.and_then(shard_names).filter(|names| names.len() as u64 == count).ok_or_else(|| {
            named.error(format!(
                "key `{COUNT_KEY}` is {count}; expected a file name such as NAME-00001-of-{count:05}.gguf"
            ))
        })?;
        let open = |name: &String| GgufFile::open(&path.with_file_name(name));
        let files = names.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        for (index, file) in files.iter().enumerate() {
            for (key, expected) in [(INDEX_KEY, index as u64), (COUNT_KEY, count)] {
                let found = number(file, key)?;
                if found != Some(expected) {
                    let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
                    return Err(file.error(format!("key `{key}` is {found}, expected {expected} by the file's name")));
                }
            }
        }
        let shards = Self { files };
        shards.check_tensors()?;
        Ok(shards)
    }

    /// A model in one file.
    pub fn single(file: GgufFile) -> Self {
        Self { files: vec![file] }
    }

    /// The files, in order.
    pub fn files(&self) -> &[GgufFile] {
        &self.files
    }

    /// The file with the metadata.
    pub fn first(&self) -> &GgufFile {
        &self.files[0]
    }

    /// The metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        self.first().metadata()
    }

    /// All tensors: name, file and entry.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufFile, &GgufEntry)> {
        let of_file = |file| GgufFile::tensors(file).iter().map(move |(name, entry)| (name.as_str(), file, entry));
        self.files.iter().flat_map(of_file)
    }

    /// Checks that every tensor is in one file, and none is missing.
    fn check_tensors(&self) -> Result<(), FormatError> {
        let mut places = BTreeMap::new();
        for (name, file, _) in self.tensors() {
            if let Some(other) = places.insert(name, file) {
                return Err(file.error(format!("tensor `{name}` is also in {}", other.path().display())));
            }
        }
        match number(self.first(), TENSORS_KEY)? {
            Some(expected) if expected != places.len() as u64 => {
                let found = places.len();
                Err(self
                    .first()
                    .error(format!("key `{TENSORS_KEY}` is {expected}, but the files have {found} tensors")))
            }
            _ => Ok(()),
        }
    }
}

fn number(file: &GgufFile, key: &str) -> Result<Option<u64>, FormatError> {
    let Some(value) = file.metadata().get(key) else { return Ok(None) };
    let number = value.as_u64().ok_or_else(|| file.error(format!("key `{key}` is {value:?}; expected a number")))?;
    Ok(Some(number))
}

/// The names of all files of a model that is split, by the name of one of them, such as `m-00001-of-00003.gguf`, which may
/// have folders before it. None if it is no such name.
pub fn shard_names(name: &str) -> Option<Vec<String>> {
    let (start, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, index) = start.rsplit_once('-')?;
    let number = |digits: &str| -> Option<u32> {
        let is_number = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
        if is_number { digits.parse().ok() } else { None }
    };
    let (index, count) = (number(index)?, number(count)?);
    let name = |index: u32| format!("{stem}-{index:05}-of-{count:05}.gguf");
    (1..=count).contains(&index).then(|| (1..=count).map(name).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gguf::{GgmlType, GgufHeader, GgufTensor, write_file};

    /// Writes a file with one tensor.
    fn write(path: &Path, index: u16, tensor: &str) {
        let mut metadata = vec![
            (INDEX_KEY.to_owned(), GgufValue::U16(index)),
            (COUNT_KEY.to_owned(), GgufValue::U16(2)),
            (TENSORS_KEY.to_owned(), GgufValue::I32(2)),
        ];
        if index == 0 {
            metadata.push(("general.architecture".to_owned(), GgufValue::Text("llama".to_owned())));
        }
        let tensors = vec![GgufTensor { name: tensor.to_owned(), shape: vec![2], dtype: GgmlType::F32 }];
        write_file(path, &GgufHeader { metadata, tensors }, |_| vec![0; 8]).unwrap();
    }

    #[test]
    fn any_file_of_a_split_model_opens_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = [1, 2].map(|index| folder.path().join(format!("m-0000{index}-of-00002.gguf")));
        write(&first, 0, "a");
        let error = GgufShards::open(&first).unwrap_err().to_string();
        assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
        write(&second, 1, "b");
        for path in [&first, &second] {
            let shards = GgufShards::open(path).unwrap();
            assert_eq!(shards.tensors().map(|(name, ..)| name).collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(shards.metadata()["general.architecture"].as_text(), Some("llama"));
        }
        write(&second, 1, "a");
        let error = GgufShards::open(&first).unwrap_err().to_string();
        assert!(error.contains("m-00002-of-00002.gguf: tensor `a` is also in"), "{error}");
        write(&second, 0, "b");
        let error = GgufShards::open(&first).unwrap_err().to_string();
        assert!(error.contains("key `split.no` is 0, expected 1"), "{error}");
        let renamed = folder.path().join("m.gguf");
        std::fs::copy(&first, &renamed).unwrap();
        let error = GgufShards::open(&renamed).unwrap_err().to_string();
        assert!(error.contains("m.gguf: key `split.count` is 2; expected a file name"), "{error}");
    }

    #[test]
    fn the_files_of_a_split_model_have_its_name_and_their_index() {
        let names = shard_names("q8/m-00002-of-00002.gguf").unwrap();
        assert_eq!(names, ["q8/m-00001-of-00002.gguf", "q8/m-00002-of-00002.gguf"]);
        for other in
            ["m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "m-+0001-of-00002.gguf"]
        {
            assert_eq!(shard_names(other), None);
        }
    }
}
