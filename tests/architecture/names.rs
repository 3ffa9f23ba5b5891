//! Names that stand more than once in the workspace: file stems, and public types.

use crate::source::code;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Stems that every crate or folder may have.
const STRUCTURAL: [&str; 4] = ["lib", "main", "mod", "error"];

/// Stems of one concept in two places: a method's rule and its fit, a command and what it is about.
const ONE_CONCEPT: [&str; 0] = [];

/// Type names of one concept in two crates.
const ONE_TYPE: [&str; 2] = ["Error", "Result"];

/// Each repeated name with the files that it stands in.
pub fn repeated(files: &[(PathBuf, String)]) -> Vec<(String, Vec<&Path>)> {
    let mut places: BTreeMap<String, Vec<&Path>> = BTreeMap::new();
    for (path, text) in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if !STRUCTURAL.contains(&stem) && !ONE_CONCEPT.contains(&stem) {
            places.entry(format!("{stem}.rs")).or_default().push(path);
        }
        for name in public_types(&code(text)) {
            if !ONE_TYPE.contains(&name.as_str()) {
                places.entry(name).or_default().push(path);
            }
        }
    }
    places.into_iter().filter(|(_, files)| files.len() > 1).collect()
}

/// The names of the types that a file declares with `pub` at the start of a line.
fn public_types(code: &str) -> Vec<String> {
    let declared = code.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ")?;
        let kinds = ["struct ", "enum ", "trait ", "type "];
        let rest = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
        Some(rest.chars().take_while(|char| char.is_alphanumeric()).collect())
    });
    declared.collect()
}
