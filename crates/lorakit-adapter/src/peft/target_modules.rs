//! Which modules an adapter targets: PEFT's rules for `target_modules` and the keys that narrow it.

use std::collections::{BTreeMap, BTreeSet};

use crate::base_module::{BaseModule, ModuleKind};
use crate::error::{AdapterError, Result};
use crate::peft::path_pattern::PathPattern;

/// The modules that a configuration selects by their paths.
///
/// As in PEFT, `exclude_modules` overrides everything else; a string `target_modules` must match the whole path; an entry
/// of a list must be the path or its last segments; `layers_to_transform` narrows a list, except for entries that are
/// whole paths.
#[derive(Clone, Debug)]
pub struct Targets {
    selection: TargetModules,
    excluded: Option<ModuleSelector>,
    layers: Option<Layers>,
}

/// What `target_modules` says.
#[derive(Clone, Debug)]
enum TargetModules {
    /// Nothing (`null`): PEFT then uses its own table of architectures; here the tensors decide.
    Unspecified,
    /// `"all-linear"`: every linear module but the head.
    AllLinear,
    /// A list or a regular expression.
    Named(ModuleSelector),
}

/// The modules that `"all-linear"` leaves out: the head, and the embedding, which is not linear.
const NOT_ALL_LINEAR: &[&str] = &["lm_head", "embed_tokens"];

/// A set of modules: a list of names or a regular expression.
#[derive(Clone, Debug)]
pub enum ModuleSelector {
    /// Paths, or their last segments.
    List(BTreeSet<String>),
    /// A regular expression that matches whole paths.
    Matching(PathPattern),
}

/// `layers_to_transform`, with `layers_pattern`.
#[derive(Clone, Debug)]
struct Layers {
    indexes: BTreeSet<i64>,
    lists: Vec<PathPattern>,
}

impl Targets {
    /// The targets of a configuration that names none.
    pub fn unspecified() -> Self {
        Self::of(TargetModules::Unspecified)
    }

    /// The modules whose path is one of `names`, or ends with a dot and one of `names`.
    pub fn list<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::of(TargetModules::Named(ModuleSelector::List(names.into_iter().map(Into::into).collect())))
    }

    /// The modules that a string `target_modules` selects: `all-linear`, or a regular expression for whole paths.
    ///
    /// # Errors
    /// If the string is not a regular expression.
    pub fn string(text: &str) -> Result<Self> {
        Ok(Self::of(if text.eq_ignore_ascii_case("all-linear") {
            TargetModules::AllLinear
        } else {
            TargetModules::Named(ModuleSelector::Matching(PathPattern::whole(text)?))
        }))
    }

    fn of(selection: TargetModules) -> Self {
        Self { selection, excluded: None, layers: None }
    }

    /// The same targets without the modules that `excluded` selects (`exclude_modules`).
    pub fn excluding(self, excluded: ModuleSelector) -> Self {
        Self { excluded: Some(excluded), ..self }
    }

    /// The same targets in some layers only (`layers_to_transform`), where `lists` are the names of the lists of layers
    /// (`layers_pattern`); without any, the first number in the path is the layer. As in PEFT, a negative number is no
    /// layer's.
    ///
    /// # Errors
    /// If the targets are a string, which PEFT refuses as well, or a name is not a regular expression.
    pub fn in_layers(self, indexes: BTreeSet<i64>, lists: &[String]) -> Result<Self> {
        if !matches!(self.selection, TargetModules::Named(ModuleSelector::List(_)) | TargetModules::Unspecified) {
            return Err(AdapterError::Targets(
                "layers_to_transform needs target_modules to be a list; name the layers in its expression instead",
            ));
        }
        let lists = lists.iter().map(|name| PathPattern::layer_list(name)).collect::<Result<_>>()?;
        Ok(Self { layers: Some(Layers { indexes, lists }), ..self })
    }

    /// Whether the configuration says what it targets; if not, the tensors do.
    pub fn is_specified(&self) -> bool {
        !matches!(self.selection, TargetModules::Unspecified)
    }

    /// Whether the module at `path` is a target. If targets are not specified, every module in the chosen layers is.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn matches(&self, path: &str) -> Result<bool> {
        if self.excludes(path)? {
            return Ok(false);
        }
        match &self.selection {
            TargetModules::Unspecified => self.layer_fits(path),
            TargetModules::AllLinear => Ok(!NOT_ALL_LINEAR.iter().any(|name| ends_with_name(path, name))),
            TargetModules::Named(ModuleSelector::List(names)) if names.contains(path) => Ok(true),
            TargetModules::Named(names) => Ok(names.contain(path)? && self.layer_fits(path)?),
        }
    }

    /// Whether a module of a base is a target; `all-linear` selects neither an embedding nor the head, as in PEFT.
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn select(&self, module: &BaseModule) -> Result<bool> {
        match (&self.selection, module.kind) {
            (TargetModules::AllLinear, ModuleKind::Embedding | ModuleKind::LmHead) => Ok(false),
            _ => self.matches(&module.path),
        }
    }

    /// Whether `exclude_modules` selects the module at `path`.
    fn excludes(&self, path: &str) -> Result<bool> {
        self.excluded.as_ref().map_or(Ok(false), |excluded| excluded.contain(path))
    }

    fn layer_fits(&self, path: &str) -> Result<bool> {
        match &self.layers {
            None => Ok(true),
            Some(layers) => Ok(layers.index_of(path)?.is_some_and(|index| layers.indexes.contains(&index))),
        }
    }

    /// What the configuration names but no module of `paths` matches: entries of its list that it does not exclude
    /// itself, and layers.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn unmatched(&self, paths: &[&str]) -> Result<Vec<String>> {
        let mut unmatched = Vec::new();
        if let TargetModules::Named(ModuleSelector::List(names)) = &self.selection {
            for name in names.iter().filter(|name| !paths.iter().any(|path| ends_with_name(path, name))) {
                if !self.excludes(name)? {
                    unmatched.push(format!("target_modules `{name}`"));
                }
            }
        }
        if let Some(layers) = &self.layers {
            let found: BTreeSet<_> = paths.iter().map(|path| layers.index_of(path)).collect::<Result<_>>()?;
            let unused = layers.indexes.iter().filter(|index| !found.contains(&Some(**index)));
            unmatched.extend(unused.map(|index| format!("layers_to_transform {index}")));
        }
        Ok(unmatched)
    }

    /// The names of the list, if the targets are a list that nothing narrows.
    pub(crate) fn plain_list(&self) -> Option<&BTreeSet<String>> {
        match (&self.selection, &self.excluded, &self.layers) {
            (TargetModules::Named(ModuleSelector::List(names)), None, None) => Some(names),
            _ => None,
        }
    }
}

impl ModuleSelector {
    fn contain(&self, path: &str) -> Result<bool> {
        match self {
            Self::List(names) => Ok(names.iter().any(|name| ends_with_name(path, name))),
            Self::Matching(pattern) => pattern.matches(path),
        }
    }
}

impl Layers {
    /// The layer that `path` is in. By default the first number with two segments before it and one after it, as in
    /// `model.layers.3.mlp`: PEFT's `.*?\.[^.]*\.(\d+)\.`.
    fn index_of(&self, path: &str) -> Result<Option<i64>> {
        if self.lists.is_empty() {
            let segments: Vec<&str> = path.split('.').collect();
            let inner = segments.get(2..segments.len().saturating_sub(1)).unwrap_or_default();
            return Ok(inner.iter().find_map(|segment| number(segment)));
        }
        for list in &self.lists {
            if let Some(index) = list.layer(path)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// A segment that is a number.
fn number(segment: &str) -> Option<i64> {
    segment.parse().ok().filter(|_| segment.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether `path` is `name` or ends with a dot and `name`.
pub(crate) fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Modules that must be in the base and are targets, but have no tensors: a parent module (`model.layers.7.mlp`) has the
/// same children as its counterparts in other layers (`model.layers.*.mlp`).
pub(crate) fn missing_targets(targets: &Targets, paths: &[&str]) -> Result<Vec<String>> {
    let mut children: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut parents = BTreeSet::new();
    for path in paths {
        let Some((parent, child)) = path.rsplit_once('.') else {
            continue;
        };
        children.entry(path_kind(parent)).or_default().insert(child);
        parents.insert(parent);
    }
    let known: BTreeSet<&str> = paths.iter().copied().collect();
    let mut missing = Vec::new();
    for parent in parents {
        for child in &children[&path_kind(parent)] {
            let path = format!("{parent}.{child}");
            if !known.contains(path.as_str()) && targets.matches(&path)? {
                missing.push(path);
            }
        }
    }
    Ok(missing)
}

/// The path with `*` for its numbers: `model.layers.*.mlp`.
fn path_kind(path: &str) -> String {
    let is_number = |segment: &'_ str| segment.bytes().all(|byte| byte.is_ascii_digit());
    path.split('.').map(|segment| if is_number(segment) { "*" } else { segment }).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q1: &str = "model.layers.1.self_attn.q_proj";

    #[test]
    fn a_list_matches_whole_last_segments_and_full_paths() {
        let targets = Targets::list(["q_proj", "model.layers.0.mlp.fc1"]);
        assert!(targets.matches(Q0).unwrap());
        assert!(targets.matches("model.layers.0.mlp.fc1").unwrap());
        assert!(!targets.matches("model.layers.1.mlp.fc1").unwrap());
        assert!(!targets.matches("model.layers.0.self_attn.my_q_proj").unwrap());
    }

    #[test]
    fn excluded_modules_are_no_targets_whatever_selects_them() {
        let list = ModuleSelector::List(["layers.0.self_attn.q_proj".to_owned()].into());
        assert!(!Targets::list([Q0]).excluding(list.clone()).matches(Q0).unwrap());
        assert!(!Targets::string("all-linear").unwrap().excluding(list).matches(Q0).unwrap());
        let pattern = ModuleSelector::Matching(PathPattern::whole(r".*\.0\..*").unwrap());
        let targets = Targets::list(["q_proj"]).excluding(pattern);
        assert!(!targets.matches(Q0).unwrap());
        assert!(targets.matches(Q1).unwrap());
    }

    #[test]
    fn layers_narrow_a_list_by_the_first_number_but_not_whole_paths() {
        let targets = Targets::list(["q_proj", "w1", Q0]).in_layers([1].into(), &[]).unwrap();
        assert!(targets.matches(Q1).unwrap());
        assert!(targets.matches(Q0).unwrap());
        assert!(!targets.matches("model.layers.0.experts.1.w1").unwrap());
        assert!(targets.matches("model.layers.1.experts.0.w1").unwrap());
        assert!(!targets.matches("layers.1.q_proj").unwrap());
    }

    #[test]
    fn layers_pattern_names_the_list_that_is_counted() {
        let targets = Targets::list(["q"]).in_layers([2].into(), &["blocks".into(), "h".into()]).unwrap();
        assert!(targets.matches("model.stage.0.blocks.2.q").unwrap());
        assert!(targets.matches("transformer.h.2.q").unwrap());
        assert!(!targets.matches("model.stage.2.blocks.0.q").unwrap());
        assert!(targets.matches("h.2.q").unwrap());
    }

    #[test]
    fn layers_narrow_unspecified_targets_and_no_layer_is_negative() {
        let targets = Targets::unspecified().in_layers([-1, 1].into(), &[]).unwrap();
        assert!(targets.matches(Q1).unwrap() && !targets.matches(Q0).unwrap());
        assert_eq!(targets.unmatched(&[Q1]).unwrap(), ["layers_to_transform -1"]);
    }

    #[test]
    fn layers_need_a_list() {
        let error = Targets::string(".*q").unwrap().in_layers([0].into(), &[]).unwrap_err();
        assert!(error.to_string().contains("layers_to_transform"));
    }

    #[test]
    fn all_linear_is_read_in_any_case_and_selects_all_but_head_and_embedding() {
        let all = Targets::string("ALL-LINEAR").unwrap();
        assert!(all.matches("lm.x").unwrap());
        assert!(!all.matches("lm_head").unwrap() && !all.matches("model.embed_tokens").unwrap());
    }

    #[test]
    fn entries_and_layers_that_no_module_matches_are_named() {
        let targets = Targets::list(["q_proj", "o_proj"]).in_layers([0, 7].into(), &[]).unwrap();
        assert_eq!(targets.unmatched(&[Q0]).unwrap(), ["target_modules `o_proj`", "layers_to_transform 7"]);
        let excluding =
            Targets::list(["q_proj", "v_proj"]).excluding(ModuleSelector::List(["v_proj".to_owned()].into()));
        assert!(excluding.unmatched(&[Q0]).unwrap().is_empty());
    }

    #[test]
    fn a_parent_must_have_the_children_of_its_counterparts_in_other_layers() {
        let paths = ["m.layers.0.attn.q", "m.layers.0.attn.v", "m.layers.1.attn.q", "m.layers.1.mlp.up"];
        let missing = missing_targets(&Targets::list(["q", "v", "up"]), &paths).unwrap();
        assert_eq!(missing, ["m.layers.1.attn.v"]);
        assert!(missing_targets(&Targets::list(paths), &paths).unwrap().is_empty());
    }
}
