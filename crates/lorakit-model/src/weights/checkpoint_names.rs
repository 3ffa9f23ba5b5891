//! The names that transformers 5 has for the tensors of safetensors files.

/// Prefixes of names in files written before transformers 4.52, and the prefixes of the same names since.
const RENAMED: [(&str, &str); 2] =
    [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")];

/// What the names of all but the LM head start with.
const MODEL: &str = "model.";

/// The same of the text model of a multimodal folder.
const TEXT_MODEL: &str = "model.language_model.";

/// The LM head's module and its weight.
const HEAD: &str = "lm_head.";
const HEAD_WEIGHT: &str = "lm_head.weight";

/// The end of the name of an embedding's weight.
const EMBEDDING: &str = "embed_tokens.weight";

/// How the names in a checkpoint's files differ from those that transformers 5 has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckpointNames {
    /// Whether they lack [`MODEL`], as in files that `AutoModel` saved: `layers.0` for `model.layers.0`.
    is_bare: bool,
    /// What precedes [`EMBEDDING`] in the name of the one weight of embedding and head, where it has the head's name.
    embedding_of_head: Option<&'static str>,
}

impl CheckpointNames {
    /// Those of files with tensors of these names.
    pub(crate) fn of<'a>(stored: impl Iterator<Item = &'a str> + Clone) -> Self {
        let any = |is: &dyn Fn(&str) -> bool| stored.clone().any(|name| is(&renamed(name)));
        let is_bare = !any(&|name| name.starts_with(MODEL)) && any(&|name| name.starts_with("layers.0."));
        let has_model = is_bare || any(&|name| name.starts_with(MODEL));
        let holds_head_alone = any(&|name| name == HEAD_WEIGHT) && !any(&|name| name.ends_with(EMBEDDING));
        let path = if any(&|name| name.starts_with(TEXT_MODEL)) { TEXT_MODEL } else { MODEL };
        Self { is_bare, embedding_of_head: (has_model && holds_head_alone).then_some(path) }
    }

    /// Whether they differ throughout, so that files are written again by the names that transformers 5 has.
    pub(crate) fn are_replaced(&self) -> bool {
        *self != Self::default()
    }

    /// The name that transformers 5 has for a tensor of these files.
    pub(crate) fn present(&self, stored: &str) -> String {
        // What describes a quantized weight has its name and a suffix.
        let of_head = self.embedding_of_head.zip(renamed(stored).strip_prefix(HEAD_WEIGHT).map(str::to_owned));
        match of_head {
            Some((path, suffix)) => format!("{path}{EMBEDDING}{suffix}"),
            None if self.is_bare && !stored.starts_with(HEAD) => format!("{MODEL}{stored}"),
            None => renamed(stored),
        }
    }
}

/// The name that replaced one of before transformers 4.52.
fn renamed(stored: &str) -> String {
    let renamed = |(old, new): &(&str, &str)| stored.strip_prefix(old).map(|rest| format!("{new}{rest}"));
    RENAMED.iter().find_map(renamed).unwrap_or_else(|| stored.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_whole_model() {
        let present = |stored: &[&str]| {
            let names = CheckpointNames::of(stored.iter().copied());
            stored.iter().map(|stored| names.present(stored)).collect::<Vec<_>>().join(" ")
        };
        for (stored, expected) in [
            (
                &["embed_tokens.weight", "layers.0.x", "norm.weight", "lm_head.weight"][..],
                "model.embed_tokens.weight model.layers.0.x model.norm.weight lm_head.weight",
            ),
            (&["lm_head.weight", "layers.0.x"], "model.embed_tokens.weight model.layers.0.x"),
            (
                &["lm_head.weight", "lm_head.weight.absmax", "model.layers.0.x"],
                "model.embed_tokens.weight model.embed_tokens.weight.absmax model.layers.0.x",
            ),
            (&["lm_head.weight", "model.layers.0.x"], "model.embed_tokens.weight model.layers.0.x"),
            (
                &["language_model.lm_head.weight", "language_model.model.layers.0.x"],
                "model.language_model.embed_tokens.weight model.language_model.layers.0.x",
            ),
            (&["shared.weight", "lm_head.weight", "encoder.x"], "shared.weight lm_head.weight encoder.x"),
            (&["model.layers.0.x", "layers.0.x"], "model.layers.0.x layers.0.x"),
        ] {
            assert_eq!(present(stored), expected);
        }
    }
}
