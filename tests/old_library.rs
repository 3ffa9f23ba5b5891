//! A library written by an earlier version (tests/fixtures/library_0.1) opens; experts are not retrained, and its unfinished
//! run resumes. A router that it cached is fitted again, since its key lacks the tokenizer, to the same state.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::run;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The settings of all experts of the library.
const SETTINGS: [&str; 3] = ["rank=1", "target_modules=q_proj", "learning_rate=1e-2"];

/// A copy of the library to work on.
struct OldLibrary(tempfile::TempDir);

impl OldLibrary {
    fn copy() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/library_0.1");
        copy_folder(&fixture, &folder.path().join("library"));
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("library")
    }

    fn lorakit(&self, arguments: &[&str]) -> Value {
        let library = self.path();
        let common = ["--library", library.to_str().unwrap(), "--base", "pico", "--json"];
        run(arguments.iter().copied().chain(common)).json()
    }

    fn train(&self, experts: &str, own: &[&str]) -> Value {
        let arguments = ["train-experts", "--tasks", "suite:skills", "--experts", experts, "--set"];
        self.lorakit(&[&arguments, &SETTINGS[..], own].concat())
    }

    /// All files with their content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        read_files(&self.path(), &mut files);
        files
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

fn read_files(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, files);
        } else if path.file_name().unwrap() != ".lock" {
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
}

#[test]
fn finished_experts_are_not_trained_again() {
    let library = OldLibrary::copy();
    let before = library.files();
    let trained = library.train("shift_up1,join_dash", &["max_steps=4"]);
    let statuses: Vec<&str> =
        trained["experts"].as_array().unwrap().iter().map(|expert| expert["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["finished before", "finished before"]);
    assert_eq!(library.files(), before);
}

#[test]
fn a_router_is_fitted_again_beside_the_old_one() {
    let library = OldLibrary::copy();
    let before = library.files();
    let eval = ["eval", "--tasks", "suite:skills/shift_up1", "--router", "cm:rows=2", "--limit", "2"];
    let scores = library.lorakit(&eval);
    assert!(scores["results"]["cm:rows=2"]["shift_up1"]["metrics"]["loss"]["value"].is_number(), "{scores}");
    let after = library.files();
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "what is there is left as it is");
    let new: Vec<&PathBuf> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    let state = |files: &BTreeMap<PathBuf, Vec<u8>>, is_old: bool| {
        let mut states = files.iter().filter(|(path, _)| path.ends_with("router.safetensors"));
        let found = states.find(|(path, _)| before.contains_key(*path) == is_old);
        safetensors_of(found.expect("a state").1)
    };
    assert_eq!(new.len(), 2, "{new:?}");
    // Rounding differs between machines.
    let (old, new) = (state(&after, true), state(&after, false));
    assert_eq!(old.len(), new.len());
    for (old, new) in old.into_iter().zip(new) {
        assert!((old - new).abs() < 1e-3, "{old} {new}");
    }
}

/// All values of a file of tensors in f32.
fn safetensors_of(bytes: &[u8]) -> Vec<f32> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let values = |tensor: &safetensors::tensor::TensorView| -> Vec<f32> {
        tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    tensors.iter().flat_map(|(_, tensor)| values(tensor)).collect()
}

#[test]
fn an_unfinished_run_resumes() {
    let library = OldLibrary::copy();
    let trained = library.train("shift_down1,join_dot", &["max_steps=60", "save_steps=5"]);
    assert!(trained["run"].as_str().unwrap().ends_with("runs/1d7e0517afbc"), "{trained}");
    // The results of the earlier version; rounding differs between machines.
    for (index, loss) in [1.752208590507507, 0.005837217904627323].into_iter().enumerate() {
        let found = trained["experts"][index]["validation_loss"].as_f64().unwrap();
        assert!((found - loss).abs() < 1e-3, "{trained}");
    }
    let log = fs::read_to_string(library.path().join("runs/1d7e0517afbc/log.jsonl")).unwrap();
    let steps: Vec<Value> =
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].clone()).collect();
    let expected: Vec<Value> = (1..=60).map(Value::from).collect();
    assert_eq!(steps, expected, "each step is logged once");
}
