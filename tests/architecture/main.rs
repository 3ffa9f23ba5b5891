//! The architecture as crates/README.md describes it: which crate may use which, no circles of imports inside a crate,
//! no name used for two concepts, and one way to quote names in errors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod imports;
mod messages;
mod names;
mod source;

use imports::Crate;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate with the crates of the workspace that it may use, and nothing else.
const EDGES: [(&str, &[&str]); 11] = [
    ("lorakit-format", &[]),
    ("lorakit-task", &["lorakit-format"]),
    ("lorakit-adapter", &["lorakit-format"]),
    ("lorakit-lora", &["lorakit-format", "lorakit-adapter"]),
    ("lorakit-cluster", &["lorakit-format", "lorakit-adapter"]),
    ("lorakit-model", &["lorakit-format", "lorakit-adapter", "lorakit-lora"]),
    ("lorakit-route", &["lorakit-format", "lorakit-adapter", "lorakit-lora"]),
    ("lorakit-eval", &["lorakit-format", "lorakit-lora", "lorakit-model", "lorakit-task"]),
    ("lorakit-train", &["lorakit-format", "lorakit-adapter", "lorakit-lora", "lorakit-model", "lorakit-task"]),
    (
        "lorakit-fit",
        &[
            "lorakit-adapter",
            "lorakit-cluster",
            "lorakit-eval",
            "lorakit-format",
            "lorakit-lora",
            "lorakit-model",
            "lorakit-route",
            "lorakit-task",
            "lorakit-train",
        ],
    ),
    (
        "lorakit",
        &[
            "lorakit-adapter",
            "lorakit-cluster",
            "lorakit-eval",
            "lorakit-fit",
            "lorakit-format",
            "lorakit-lora",
            "lorakit-model",
            "lorakit-route",
            "lorakit-task",
            "lorakit-train",
        ],
    ),
];

/// Dependencies that only the binary may use: the command line and everything that prints.
const ROOF_ONLY: [&str; 5] = ["clap", "clap_complete", "comfy-table", "indicatif", "hf-hub"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The names of a manifest's dependencies: regular ones, and dev-dependencies.
fn dependencies(manifest: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let table: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    let names = |key: &str| {
        table.get(key).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys).cloned().collect()
    };
    (names("dependencies"), names("dev-dependencies"))
}

/// Every crate of the workspace with its manifest.
fn manifests() -> BTreeMap<String, PathBuf> {
    let mut manifests = BTreeMap::from([("lorakit".to_owned(), root().join("Cargo.toml"))]);
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            manifests.insert(entry.file_name().into_string().unwrap(), entry.path().join("Cargo.toml"));
        }
    }
    manifests
}

fn of_the_workspace(names: &BTreeSet<String>) -> BTreeSet<&str> {
    names.iter().map(String::as_str).filter(|name| name.starts_with("lorakit")).collect()
}

/// Every Rust file below a folder, with its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.clone(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

#[test]
fn every_crate_uses_only_the_crates_below_it() {
    let manifests = manifests();
    assert_eq!(
        manifests.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        EDGES.iter().map(|(name, _)| *name).collect()
    );
    for (name, allowed) in EDGES {
        let (built, _) = dependencies(&manifests[name]);
        for used in of_the_workspace(&built) {
            assert!(allowed.contains(&used), "{name} uses {used}; it may use {allowed:?}");
        }
    }
}

#[test]
fn tasks_have_no_tensors_and_adapters_no_text() {
    let manifests = manifests();
    let (task, _) = dependencies(&manifests["lorakit-task"]);
    let (adapter, _) = dependencies(&manifests["lorakit-adapter"]);
    for absent in ["candle-core", "candle-nn", "safetensors", "gemm", "faer"] {
        assert!(!task.contains(absent), "lorakit-task uses {absent}");
    }
    for absent in ["tokenizers", "minijinja"] {
        assert!(!adapter.contains(absent), "lorakit-adapter uses {absent}");
    }
    // Its models carry no gradient; its sampling is used.
    for (name, manifest) in &manifests {
        let (built, _) = dependencies(manifest);
        let allowed = name == "lorakit-model";
        assert!(allowed || !built.contains("candle-transformers"), "{name} uses candle-transformers");
        for (path, text) in sources(&manifest.with_file_name("src")) {
            assert!(!text.contains("candle_transformers::models"), "{}", path.display());
        }
    }
}

#[test]
fn the_command_line_and_printing_are_in_the_roof_alone() {
    for (name, manifest) in manifests().iter().filter(|(name, _)| *name != "lorakit") {
        let (built, _) = dependencies(manifest);
        for absent in ROOF_ONLY {
            assert!(!built.contains(absent), "{name} uses {absent}");
        }
        for (path, text) in sources(&manifest.with_file_name("src")) {
            // Tests may print; library code may not.
            let built = text.split("#[cfg(test)]").next().unwrap();
            for macro_call in ["println!(", "eprintln!(", "print!(", "eprint!(", "dbg!("] {
                let printed =
                    built.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(macro_call));
                assert!(!printed, "{}: {macro_call}", path.display());
            }
        }
    }
}

#[test]
fn model_files_name_no_router_merge_or_trainer() {
    for (path, text) in sources(&root().join("crates/lorakit-model/src")) {
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let line = line.to_lowercase();
            for word in line.split(|c: char| !c.is_alphanumeric()) {
                let stranger = ["arrow", "router", "lorahub", "merge", "optimizer", "cluster"]
                    .into_iter()
                    .find(|name| word.starts_with(name));
                assert!(stranger.is_none(), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let folders = manifests().into_values().map(|manifest| manifest.with_file_name("src"));
    let roots = folders.flat_map(|folder| ["lib.rs", "main.rs"].map(|root| folder.join(root)));
    let circles = roots.filter(|root| root.exists()).map(|root| (Crate::read(&root).circles(), root));
    let circles: Vec<_> = circles.filter(|(circles, _)| !circles.is_empty()).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn no_name_stands_for_two_things() {
    let folders: Vec<PathBuf> = manifests().into_values().map(|manifest| manifest.with_file_name("src")).collect();
    let files: Vec<(PathBuf, String)> = folders.iter().flat_map(|folder| sources(folder)).collect();
    let repeated = names::repeated(&files);
    assert!(repeated.is_empty(), "names used more than once: {repeated:#?}");
}

#[test]
fn errors_quote_names_in_backticks() {
    for manifest in manifests().values() {
        for (path, text) in sources(&manifest.with_file_name("src")) {
            let wrong = messages::wrongly_quoted(&text);
            assert!(wrong.is_empty(), "{}: {wrong:#?}", path.display());
        }
    }
}
