//! How `target_modules` names an adapter's modules when it is written.
//!
//! Short names such as `q_proj` are what people expect and PEFT's trainers write, but PEFT applies them to every module
//! of the base whose path ends with them, with random weights where the file has none. So they are used only if they
//! select exactly the adapter's modules.

use std::collections::BTreeSet;

use crate::peft::target_modules::{Targets, ends_with_name, missing_targets};
use crate::peft::wrapper_prefix::TEXT_MODEL;

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

    /// The names for `modules` of a base whose linear modules are `base`. In a multimodal base, short names would also
    /// select modules of its image encoder, which are not among these.
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
        let multimodal = modules.iter().any(|path| path.starts_with(TEXT_MODEL));
        if selected == modules && !multimodal && readable() { Self::Short(names) } else { Self::WholePaths }
    }

    /// The names for `modules`, each of which one of `sources` has: what is short in all sources selected exactly their
    /// modules in the base, so together they select exactly these.
    pub(crate) fn together<'a>(
        modules: impl Iterator<Item = &'a String> + Clone,
        sources: impl Iterator<Item = &'a Self>,
    ) -> Self {
        let mut names = BTreeSet::new();
        for source in sources {
            match source {
                Self::Short(short) => names.extend(short.iter().cloned()),
                Self::WholePaths => return Self::WholePaths,
            }
        }
        let all = names.clone();
        // Names without modules, and those that a shorter name covers, are not needed.
        names.retain(|name| {
            modules.clone().any(|path| ends_with_name(path, name))
                && !all.iter().any(|shorter| shorter != name && ends_with_name(name, shorter))
        });
        let all = modules.clone().all(|path| names.iter().any(|name| ends_with_name(path, name)));
        if all { Self::Short(names) } else { Self::WholePaths }
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
    fn names_that_are_short_in_all_sources_stay_short_together() {
        let paths = owned(&["m.layers.0.a.q", "m.layers.0.a.v"]);
        let (q, v) = (short(&["q"]), short(&["v", "query_key_value"]));
        assert_eq!(TargetNames::together(paths.iter(), [&q, &v].into_iter()), short(&["q", "v"]));
        assert_eq!(
            TargetNames::together(paths.iter(), [&q, &TargetNames::WholePaths].into_iter()),
            TargetNames::WholePaths
        );
        assert_eq!(TargetNames::together(paths.iter(), [&q].into_iter()), TargetNames::WholePaths);
    }

    #[test]
    fn short_names_are_used_exactly_where_they_select_no_other_module_of_the_base() {
        let base = ["m.layers.0.q", "m.layers.0.v", "m.layers.1.q", "m.layers.1.v"];
        let one_name = owned(&["m.layers.0.q", "m.layers.1.q"]);
        assert_eq!(TargetNames::for_base(one_name.iter(), base.into_iter()), short(&["q"]));
        assert_eq!(TargetNames::for_base(one_name[..1].iter(), base.into_iter()), TargetNames::WholePaths);
        assert_eq!(TargetNames::for_base(one_name[..1].iter(), base[..2].iter().copied()), short(&["q"]));
        let within = owned(&["model.language_model.layers.0.q"]);
        assert_eq!(
            TargetNames::for_base(within.iter(), within.iter().map(String::as_str)),
            TargetNames::WholePaths,
            "its image encoder may have a q too"
        );
    }
}
