//! Prefixes that wrappers of a model leave in the names of its tensors, and the renamed towers of multimodal bases.

use std::collections::BTreeSet;

/// What PEFT puts before a module's path.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Segments that a wrapper puts between a model and its parts, and whose they are.
const WRAPPERS: &[(&str, &str)] = &[
    ("_orig_mod", "the prefix of torch.compile"),
    ("_fsdp_wrapped_module", "the prefix of FSDP"),
    ("_checkpoint_wrapped_module", "the prefix of activation checkpointing"),
    ("_forward_module", "the prefix of Lightning's strategies"),
];

/// The prefix that DistributedDataParallel and DeepSpeed put before the whole model.
const PARALLEL: &str = "module";

/// Whose that prefix is.
const PARALLEL_MEANING: &str = "the prefix of DistributedDataParallel and DeepSpeed";

/// The prefix that a wrapper of a whole model leaves in the name of a base's tensor, and what it is.
pub fn wrapper_prefix(name: &str) -> Option<(String, &'static str)> {
    if name.starts_with(PREFIX) {
        return Some((PREFIX.to_owned(), "the prefix of a PEFT model, into which its adapter can be merged"));
    }
    let first = name.split('.').next()?;
    let wrapper = WRAPPERS.iter().copied().chain([(PARALLEL, PARALLEL_MEANING)]).find(|(segment, _)| *segment == first);
    wrapper.map(|(segment, meaning)| (format!("{segment}."), meaning))
}

/// The path of the language model inside a multimodal one, since transformers 4.52.
pub(crate) const TEXT_MODEL: &str = "model.language_model.";

/// Names of the language model inside a multimodal one.
const TEXT_TOWERS: &[&str] = &["language_model", "text_model"];

/// The head, which is no part of `model.`.
const HEAD: &str = "lm_head";

/// A tensor's name without wrappers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unwrapped {
    /// The path as transformers has it: `model.layers.0.self_attn.q_proj.lora_A.weight`, or in a multimodal model
    /// `model.language_model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub(crate) path: String,
    /// The path as the file has it after PEFT's prefix, which the configuration was written for.
    pub(crate) raw: String,
    /// Whether PEFT's prefix was there.
    pub(crate) prefixed: bool,
    /// What was corrected, each as the text of a warning.
    pub(crate) corrected: BTreeSet<(String, &'static str)>,
}

impl Unwrapped {
    /// Strips `key` of wrappers.
    pub(crate) fn of(key: &str) -> Self {
        let mut corrected = BTreeSet::new();
        let mut segments = Vec::new();
        for segment in key.split('.') {
            match WRAPPERS.iter().find(|(name, _)| *name == segment) {
                Some((name, meaning)) => drop(corrected.insert((format!("{name}."), *meaning))),
                None => segments.push(segment),
            }
        }
        let joined = segments.join(".");
        let (mut path, mut prefixes) = (joined.as_str(), 0);
        loop {
            if let Some(rest) = path.strip_prefix(PREFIX) {
                (path, prefixes) = (rest, prefixes + 1);
            } else if let Some(rest) = path.strip_prefix(PARALLEL).and_then(|rest| rest.strip_prefix('.')) {
                path = rest;
                corrected.insert((format!("{PARALLEL}."), PARALLEL_MEANING));
            } else {
                break;
            }
        }
        if prefixes > 1 {
            corrected.insert((PREFIX.to_owned(), "it occurs twice: a PEFT model was wrapped again"));
        }
        let raw = key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
        let path = match in_text_model(path) {
            Some((tower, path)) => {
                corrected
                    .insert((tower, "not the path of the language model in a multimodal one since transformers 4.52"));
                path
            }
            None => path.to_owned(),
        };
        Self { path, raw, prefixed: prefixes > 0, corrected }
    }
}

/// The path in the language model of a multimodal one, with what the file has before it, if that is another path:
/// `language_model.model.layers` (transformers before 4.52) is `model.language_model.layers`.
fn in_text_model(path: &str) -> Option<(String, String)> {
    let inner = path.strip_prefix("model.").unwrap_or(path);
    let (_, rest) = inner.split_once('.').filter(|(tower, _)| TEXT_TOWERS.contains(tower))?;
    let rest = rest.strip_prefix("model.").unwrap_or(rest);
    let head = rest.split('.').next() == Some(HEAD);
    let found = if head { rest.to_owned() } else { format!("{TEXT_MODEL}{rest}") };
    (found != path).then(|| (path[..path.len() - rest.len()].to_owned(), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "model.layers.0.self_attn.q_proj.lora_A.weight";

    #[test]
    fn every_wrapper_is_stripped_and_named() {
        for (key, named) in [
            (format!("_orig_mod.{PREFIX}{PATH}"), "_orig_mod."),
            (format!("{PREFIX}_orig_mod.{PATH}"), "_orig_mod."),
            (PREFIX.to_owned() + &PATH.replace("layers.0", "layers.0._orig_mod"), "_orig_mod."),
            (format!("{PREFIX}_fsdp_wrapped_module.{PATH}"), "_fsdp_wrapped_module."),
            (
                PREFIX.to_owned()
                    + &PATH.replace("layers.0", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module"),
                "_checkpoint_wrapped_module.",
            ),
            (format!("module.{PREFIX}{PATH}"), "module."),
            (format!("_forward_module.module.{PREFIX}{PATH}"), "_forward_module."),
            (format!("{PREFIX}module.{PATH}"), "module."),
            (format!("{PREFIX}{PREFIX}{PATH}"), PREFIX),
        ] {
            let found = Unwrapped::of(&key);
            assert_eq!(found.path, PATH, "{key}");
            assert!(found.prefixed && found.corrected.iter().any(|(name, _)| name == named), "{key}: {found:?}");
        }
    }

    #[test]
    fn every_path_of_a_multimodal_model_s_language_model_is_that_of_today() {
        const WITHIN: &str = "model.language_model.layers.0.self_attn.q_proj.lora_A.weight";
        for tower in ["language_model.model.", "language_model.", "model.language_model.model.", "model.text_model."] {
            let found = Unwrapped::of(&(PREFIX.to_owned() + &PATH.replace("model.", tower)));
            assert_eq!(found.path, WITHIN, "{tower}");
            assert!(found.prefixed && found.corrected.iter().any(|(name, _)| name == tower), "{tower}: {found:?}");
        }
        let today = Unwrapped::of(&format!("{PREFIX}{WITHIN}"));
        assert_eq!((today.path.as_str(), today.corrected.len()), (WITHIN, 0));
    }

    #[test]
    fn plain_paths_stay_as_they_are() {
        for path in [PATH, "transformer.h.0.module.c_attn.lora_A.weight", "lm_head.lora_A.weight"] {
            let found = Unwrapped::of(&format!("{PREFIX}{path}"));
            assert_eq!((found.path.as_str(), found.raw.as_str(), found.corrected.len()), (path, path, 0));
            assert!(!Unwrapped::of(path).prefixed);
        }
        assert_eq!(Unwrapped::of("language_model.lm_head.lora_A.weight").path, "lm_head.lora_A.weight");
    }
}
