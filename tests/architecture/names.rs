//! Names that occur more than once in the workspace: file stems, and types that other files can use.

use crate::source::code;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Stems that every crate or folder may have.
const STRUCTURAL: [&str; 4] = ["lib", "main", "mod", "error"];

/// The crates of a method's two halves: its rule and its fit, which share a stem.
const RULE_AND_FIT: [&str; 2] = ["lorakit-route", "lorakit-fit"];

/// Types of one concept in several crates.
const ONE_TYPE: [&str; 2] = ["BoxError", "Result"];

/// Each repeated name with the files that contain it.
pub fn repeated(files: &[(PathBuf, String)]) -> Vec<(String, Vec<&Path>)> {
    let mut places: BTreeMap<String, Vec<&Path>> = BTreeMap::new();
    for (path, text) in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if !STRUCTURAL.contains(&stem) {
            places.entry(format!("{stem}.rs")).or_default().push(path);
        }
        for name in public_types(&code(text)) {
            if !ONE_TYPE.contains(&name.as_str()) {
                places.entry(name).or_default().push(path);
            }
        }
    }
    places.into_iter().filter(|(_, files)| files.len() > 1 && !are_rule_and_fit(files)).collect()
}

/// Whether two files are the rule and the fit of one method.
fn are_rule_and_fit(files: &[&Path]) -> bool {
    let within = |name: &str| files.iter().filter(|file| file.iter().any(|part| part == name)).count();
    files.len() == 2 && RULE_AND_FIT.iter().all(|name| within(name) == 1)
}

/// The names of the types that a file declares with `pub` or `pub(crate)` at the start of a line.
fn public_types(code: &str) -> Vec<String> {
    let declared = code.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
        let kinds = ["struct ", "enum ", "trait ", "type "];
        let rest = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
        Some(rest.chars().take_while(|char| char.is_alphanumeric()).collect())
    });
    declared.collect()
}
