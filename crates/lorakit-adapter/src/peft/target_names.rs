//! How `target_modules` names an adapter's modules when it is written.
//!
//! Short names such as `q_proj` are what people expect and PEFT's trainers write, but PEFT applies them to every module
//! of the base whose path ends with them, with random weights where the file has none. So they are used only if they
//! select exactly the adapter's modules.

use std::collections::{BTreeMap, BTreeSet};

use crate::peft::target_modules::{Targets, ends_with_name, missing_targets};

/// The form of `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetNames {
    /// Names that are known, or can be assumed, to select exactly the modules.
    Short(BTreeSet<String>),
    /// Every module by its whole path.
    WholePaths,
}

impl TargetNames {
    /// The names for an adapter whose configuration had `targets`: a plain list is kept, since it selected exactly the
    /// modules; anything else is spelled out, so that any program understands it.
    pub(crate) fn of_targets(targets: &Targets) -> Self {
        match targets.plain_list() {
            Some(names) => Self::Short(names.clone()),
            None => Self::WholePaths,
        }
    }

    /// The names for `modules` of a base whose linear modules are `base`.
    pub(crate) fn for_base<'a>(modules: impl Iterator<Item = &'a String>, base: impl Iterator<Item = &'a str>) -> Self {
        let modules: BTreeSet<&str> = modules.map(String::as_str).collect();
        let names = last_segments(modules.iter().copied());
        let selected: BTreeSet<&str> =
            base.filter(|path| names.iter().any(|name| ends_with_name(path, name))).collect();
        let readable = || {
            let paths: Vec<&str> = modules.iter().copied().collect();
            missing_targets(&Targets::list(names.clone()), &paths).is_ok_and(|missing| missing.is_empty())
        };
        // Who reads the adapter without the base would take uneven layers for a damaged file, unless whole paths are named.
        if selected == modules && readable() { Self::Short(names) } else { Self::WholePaths }
    }

    /// The names for `modules` of an unknown base. Adapters of whole models have the same modules in the layers 0, 1, 2
    /// and so on; anything else, or a single layer, is named by whole paths.
    pub(crate) fn guess<'a>(modules: impl Iterator<Item = &'a String>) -> Self {
        let modules: Vec<&str> = modules.map(String::as_str).collect();
        let mut layers: BTreeMap<(&str, &str), BTreeSet<usize>> = BTreeMap::new();
        for path in &modules {
            let Some((before, index, after)) = split_at_layer(path) else {
                return Self::WholePaths;
            };
            layers.entry((before, after)).or_default().insert(index);
        }
        let mut sets = layers.values();
        let whole = sets.next().is_some_and(|first| {
            first.len() > 1 && first.iter().copied().eq(0..first.len()) && sets.all(|other| other == first)
        });
        if whole { Self::Short(last_segments(modules.into_iter())) } else { Self::WholePaths }
    }

    /// `target_modules` of an adapter with `modules`, sorted.
    pub(crate) fn target_modules<'a>(&'a self, modules: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
        match self {
            Self::Short(names) => names.iter().map(String::as_str).collect(),
            Self::WholePaths => modules.map(String::as_str).collect(),
        }
    }
}

fn last_segments<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    paths.map(|path| path.rsplit('.').next().unwrap_or(path).to_owned()).collect()
}

/// The first number in a path, with what is before and after it.
fn split_at_layer(path: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for segment in path.split('.') {
        if let Ok(index) = segment.parse() {
            return Some((&path[..start], index, &path[start + segment.len()..]));
        }
        start += segment.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    fn short(names: &[&str]) -> TargetNames {
        TargetNames::Short(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn the_same_modules_in_all_layers_from_zero_get_short_names() {
        let paths = owned(&["m.layers.0.a.q", "m.layers.0.a.v", "m.layers.1.a.q", "m.layers.1.a.v"]);
        assert_eq!(TargetNames::guess(paths.iter()), short(&["q", "v"]));
        for odd in [&paths[..3], &paths[..2], &paths[2..], &owned(&["m.head"])[..], &[]] {
            assert_eq!(TargetNames::guess(odd.iter()), TargetNames::WholePaths, "{odd:?}");
        }
    }

    #[test]
    fn short_names_are_used_exactly_where_they_select_no_other_module_of_the_base() {
        let base = ["m.layers.0.q", "m.layers.0.v", "m.layers.1.q", "m.layers.1.v"];
        let one_name = owned(&["m.layers.0.q", "m.layers.1.q"]);
        assert_eq!(TargetNames::for_base(one_name.iter(), base.into_iter()), short(&["q"]));
        assert_eq!(TargetNames::for_base(one_name[..1].iter(), base.into_iter()), TargetNames::WholePaths);
        assert_eq!(TargetNames::for_base(one_name[..1].iter(), base[..2].iter().copied()), short(&["q"]));
    }
}
