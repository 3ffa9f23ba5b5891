//! What the paths of an adapter tell of modules that it lacks, where the base is not known.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::target::Targets;

/// Modules that must be in the base and are targets, but have no tensors. A parent module
/// (`model.layers.7.mlp`) has the children that its like in other layers (`model.layers.*.mlp`)
/// have.
pub(crate) fn missing_siblings(targets: &Targets, paths: &[&str]) -> Result<Vec<String>> {
    let mut children: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut parents = BTreeSet::new();
    for path in paths {
        let Some((parent, child)) = path.rsplit_once('.') else {
            continue;
        };
        children.entry(kind(parent)).or_default().insert(child);
        parents.insert(parent);
    }
    let known: BTreeSet<&str> = paths.iter().copied().collect();
    let mut missing = Vec::new();
    for parent in parents {
        for child in &children[&kind(parent)] {
            let path = format!("{parent}.{child}");
            if !known.contains(path.as_str()) && targets.matches(&path)? {
                missing.push(path);
            }
        }
    }
    Ok(missing)
}

/// The path with its numbers left open: `model.layers.*.mlp`.
fn kind(path: &str) -> String {
    let open = |segment: &'_ str| segment.bytes().all(|byte| byte.is_ascii_digit());
    path.split('.').map(|segment| if open(segment) { "*" } else { segment }).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_parent_is_expected_to_have_the_children_of_its_like_in_other_layers() {
        let paths = ["m.layers.0.attn.q", "m.layers.0.attn.v", "m.layers.1.attn.q", "m.layers.1.mlp.up"];
        let missing = missing_siblings(&Targets::list(["q", "v", "up"]), &paths).unwrap();
        assert_eq!(missing, ["m.layers.1.attn.v"]);
        assert!(missing_siblings(&Targets::list(paths), &paths).unwrap().is_empty());
    }
}
