//! The names of an adapter's tensors: `base_model.model.` + module path + `.lora_A.weight` or `.lora_B.weight`; for an
//! embedding `.lora_embedding_A` or `.lora_embedding_B`.

use std::collections::BTreeSet;

use crate::peft::wrapper_prefix::{PREFIX, Unwrapped};

/// Parts of tensor names that belong to something else than a LoRA's A and B, and what that is.
const FOREIGN: &[(&str, &str)] = &[
    (".lora_magnitude_vector", "the magnitude vector of DoRA, which rescales the base's weights"),
    (".lora_diag", "the diagonal of a LoRA variant"),
    (".lora_E", "AdaLoRA's singular values; PEFT can save an AdaLoRA only as such"),
    (".lora_ranknum", "a rank counter of AdaLoRA"),
    (".base_layer.", "a weight or bias of the base itself"),
    (".token_adapter.", "retrained embeddings of single tokens (trainable_token_indices)"),
    (".modules_to_save.", "a full copy of a module (modules_to_save)"),
    (".hada_", "a LoHa adapter"),
    (".lokr_", "a LoKr adapter"),
    (".ia3_", "an IA3 adapter"),
    (".vera_", "a VeRA adapter"),
    (".lora_down.", "the layout of kohya's trainers; convert it to PEFT's"),
    (".lora_up.", "the layout of kohya's trainers; convert it to PEFT's"),
    (".lora_a", "the layout of mlx-lm, which stores A and B transposed; convert it to PEFT's"),
    (".lora_b", "the layout of mlx-lm, which stores A and B transposed; convert it to PEFT's"),
    ("prompt_embeddings", "a prompt adapter"),
];

/// Which of a module's two matrices a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    /// `[r, in]`.
    A,
    /// `[out, r]`.
    B,
}

/// A parsed tensor name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorKey {
    /// The module's path, without the prefixes of wrappers, and as transformers has it.
    pub(crate) module: String,
    /// The module's path as the file has it, for which the configuration was written.
    pub(crate) raw_module: String,
    pub(crate) factor: Factor,
    /// Whether the module is an embedding.
    pub(crate) embedding: bool,
    /// Whether it has PEFT's prefix.
    pub(crate) prefixed: bool,
    /// The adapter's name inside the key, which in-memory dumps have: `lora_A.default.weight`.
    pub(crate) adapter: Option<String>,
    /// The prefixes that were corrected, with their meanings.
    pub(crate) corrected: BTreeSet<(String, &'static str)>,
}

impl Factor {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
        }
    }

    fn embedding_name(self) -> &'static str {
        match self {
            Self::A => "lora_embedding_A",
            Self::B => "lora_embedding_B",
        }
    }

    /// The key of this factor of `module` in PEFT's files.
    pub(crate) fn key(self, module: &str, embedding: bool) -> String {
        match embedding {
            true => format!("{PREFIX}{module}.{}", self.embedding_name()),
            false => format!("{PREFIX}{module}.{}.weight", self.name()),
        }
    }
}

impl TensorKey {
    /// Parses `key`, or says what it is instead.
    pub(crate) fn parse(key: &str) -> Result<Self, &'static str> {
        let Unwrapped { path, raw, prefixed, corrected } = Unwrapped::of(key);
        for factor in [Factor::A, Factor::B] {
            for embedding in [false, true] {
                let found = |path: &str| -> Option<(String, Option<String>)> {
                    let (path, name) = match embedding {
                        true => (path, factor.embedding_name()),
                        false => (path.strip_suffix(".weight")?, factor.name()),
                    };
                    let (module, adapter) = split(path, name)?;
                    Some((module.to_owned(), adapter.map(str::to_owned)))
                };
                if let (Some((module, adapter)), Some((raw_module, _))) = (found(&path), found(&raw)) {
                    return Ok(Self { module, raw_module, factor, embedding, prefixed, adapter, corrected });
                }
            }
        }
        Err(foreign(&path))
    }
}

/// The module and the adapter's name in `MODULE.lora_A[.ADAPTER]`.
fn split<'a>(path: &'a str, name: &str) -> Option<(&'a str, Option<&'a str>)> {
    let (module, rest) = path.rsplit_once(name)?;
    let module = module.strip_suffix('.').filter(|module| !module.is_empty())?;
    match rest.strip_prefix('.') {
        None if rest.is_empty() => Some((module, None)),
        Some(adapter) if !adapter.is_empty() && !adapter.contains('.') => Some((module, Some(adapter))),
        _ => None,
    }
}

fn foreign(path: &str) -> &'static str {
    if path.contains(".lora_B.") && path.ends_with(".bias") {
        return "a bias of lora_B (lora_bias)";
    }
    match FOREIGN.iter().find(|(mark, _)| path.contains(mark)) {
        Some((_, meaning)) => meaning,
        None if path.ends_with(".bias") => {
            "a bias of the base (bias), which --base compares, or of a full copy of a module (modules_to_save)"
        }
        None => "neither a lora_A nor a lora_B; perhaps a full copy of a module (modules_to_save)",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_are_parsed_with_and_without_prefix_and_adapter() {
        let key = TensorKey::parse("base_model.model.model.layers.0.q_proj.lora_A.weight").unwrap();
        assert_eq!(
            (key.module.as_str(), key.factor, key.prefixed, key.adapter),
            ("model.layers.0.q_proj", Factor::A, true, None)
        );
        let key = TensorKey::parse("h.0.c_attn.lora_B.default.weight").unwrap();
        assert_eq!(
            (key.module.as_str(), key.factor, key.prefixed, key.adapter.as_deref()),
            ("h.0.c_attn", Factor::B, false, Some("default"))
        );
    }

    #[test]
    fn names_of_an_embedding_have_no_suffix() {
        for (name, adapter) in [("lora_embedding_B", None), ("lora_embedding_B.default", Some("default"))] {
            let key = format!("base_model.model.model.embed_tokens.{name}");
            let key = TensorKey::parse(&key).unwrap();
            assert_eq!(
                (key.module.as_str(), key.factor, key.embedding, key.adapter.as_deref()),
                ("model.embed_tokens", Factor::B, true, adapter)
            );
        }
        assert_eq!(Factor::A.key("e", true), "base_model.model.e.lora_embedding_A");
    }

    #[test]
    fn other_tensors_are_named_for_what_they_are() {
        for (key, meaning) in [
            ("m.q.lora_magnitude_vector", "DoRA"),
            ("m.q.lora_magnitude_vector.default.weight", "DoRA"),
            ("m.q.lora_B.bias", "lora_bias"),
            ("m.q.base_layer.bias", "base itself"),
            ("m.q.lora_E", "AdaLoRA"),
            ("m.q.lora_a", "mlx-lm"),
            ("m.embed.token_adapter.trainable_tokens_delta", "trainable_token_indices"),
            ("base_model.model.score.weight", "modules_to_save"),
            ("m.q.bias", "bias"),
            ("lora_A.weight", "neither"),
            ("m.lora_A.a.b.weight", "neither"),
        ] {
            assert!(TensorKey::parse(key).unwrap_err().contains(meaning), "{key}");
        }
    }
}
