//! Adapters between a text model alone, with modules `model.layers`, and the same within a multimodal model, where they are
//! `model.language_model.layers`.

use crate::adapter::Adapter;
use crate::base_module::BaseModule;
use crate::error::Result;
use crate::peft::wrapper_prefix::TEXT_MODEL;
use crate::warning::Warning;
use std::collections::BTreeSet;

/// What paths start with in a text model alone.
const ALONE: &str = "model.";

/// What a text model has directly below its path, where adapters change it.
const PARTS: [&str; 2] = ["layers.", "embed_tokens"];

/// A renaming of a text model's modules between its two forms.
pub(crate) struct TextModelRenaming {
    from: &'static str,
    to: &'static str,
    /// Where the text model is in the form with the new paths.
    place: &'static str,
}

impl TextModelRenaming {
    /// The renaming of `paths` into those of a base; none where nothing has to change.
    pub(crate) fn of<'a>(paths: impl Iterator<Item = &'a String>, base: &[BaseModule]) -> Option<Self> {
        let has = |prefix: &str| base.iter().any(|module| part(&module.path, prefix).is_some());
        let (from, to, place) = match (has(ALONE), has(TEXT_MODEL)) {
            (false, true) => (ALONE, TEXT_MODEL, "the text model within a multimodal one"),
            (true, false) => (TEXT_MODEL, ALONE, "the text model alone"),
            _ => return None,
        };
        let (renaming, paths) = (Self { from, to, place }, paths.collect::<BTreeSet<_>>());
        let mut renamed = paths.iter().filter_map(|path| renaming.renamed(path)).peekable();
        // An adapter with modules of both paths is of neither base, which is for the check against the base to say.
        let changes = renamed.peek().is_some() && !renamed.any(|path| paths.contains(&path));
        changes.then_some(renaming)
    }

    fn renamed(&self, path: &str) -> Option<String> {
        part(path, self.from).map(|part| format!("{}{part}", self.to))
    }

    /// The path in the base of a module or tensor.
    pub(crate) fn path(&self, path: &str) -> String {
        self.renamed(path).unwrap_or_else(|| path.to_owned())
    }

    /// What to say of it.
    pub(crate) fn warning(&self) -> Warning {
        let Self { from, to, place } = self;
        let text =
            format!("written for another form of the base, with modules `{from}`; served here in {place}: `{to}`");
        Warning::new("target_modules", text)
    }
}

/// The path that a module of a text model has where the text model is alone; of other modules, their own.
pub fn path_in_text_model(path: &str) -> String {
    part(path, TEXT_MODEL).map_or_else(|| path.to_owned(), |part| format!("{ALONE}{part}"))
}

impl Adapter {
    /// The same adapter with the module paths of a base of the same form: of the text model alone or within a multimodal
    /// one, and with projections fused or split as the base's are; with a warning of each change, or as it is where
    /// nothing has to change.
    ///
    /// # Errors
    /// If the widths of fused or split projections do not add up to those of the base.
    pub fn with_modules_of(self, base: &[BaseModule]) -> Result<Self> {
        self.with_text_model_of(base).with_projections_of(base)
    }

    /// The same adapter with the module paths of a base of the same form: of the text model alone or within a multimodal
    /// one; with a warning of that, or as it is where nothing has to change.
    pub fn with_text_model_of(self, base: &[BaseModule]) -> Self {
        match TextModelRenaming::of(self.modules().keys(), base) {
            Some(renaming) => self.with_text_model_paths(&renaming),
            None => self,
        }
    }

    /// The same adapter with other paths, and a warning of that.
    pub(crate) fn with_text_model_paths(self, renaming: &TextModelRenaming) -> Self {
        self.with_paths(|path| renaming.path(path)).with_warning(renaming.warning())
    }
}

/// What follows `prefix` in the path of a part of a text model.
fn part<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| PARTS.iter().any(|part| rest.starts_with(part)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base_module::ModuleKind;
    use crate::low_rank::LowRank;
    use crate::matrix::Matrix;
    use crate::peft::peft_config::AdapterMetadata;
    use std::collections::BTreeMap;

    const NAMES: [(&str, ModuleKind); 4] = [
        ("model.embed_tokens", ModuleKind::Embedding),
        ("model.layers.0.mlp.down_proj", ModuleKind::Linear),
        ("model.layers.0.self_attn.qkv_proj", ModuleKind::Linear),
        ("lm_head", ModuleKind::LmHead),
    ];

    fn base(prefix: &str) -> Vec<BaseModule> {
        let module = |(path, kind)| BaseModule { path: within(path, prefix), input: 3, output: 6, kind };
        NAMES.map(module).into()
    }

    fn within(path: &str, prefix: &str) -> String {
        path.replace(ALONE, prefix)
    }

    fn adapter(paths: impl IntoIterator<Item = String>) -> Adapter {
        let matrix = |rows, columns| Matrix::new(rows, columns, vec![0.5; rows * columns]).unwrap();
        let update = LowRank::new(matrix(1, 3), matrix(6, 1), 2.0).unwrap();
        let modules: BTreeMap<String, LowRank> = paths.into_iter().map(|path| (path, update.clone())).collect();
        let embeddings: BTreeSet<String> =
            modules.keys().filter(|path| path.ends_with("embed_tokens")).cloned().collect();
        Adapter::new(modules).with_metadata(AdapterMetadata { embeddings, ..AdapterMetadata::default() })
    }

    #[test]
    fn each_form_of_a_base_takes_the_adapters_of_the_other() {
        for (own, other) in [(ALONE, TEXT_MODEL), (TEXT_MODEL, ALONE)] {
            let of_base = format!("{other}embed_tokens.weight");
            let foreign = adapter(NAMES.map(|(path, _)| within(path, other)))
                .with_base_tensors(BTreeMap::from([(of_base, Matrix::new(1, 1, vec![1.0]).unwrap())]));
            assert!(foreign.check_against(&base(own)).is_err());
            let served = foreign.clone().with_modules_of(&base(own)).unwrap();
            served.check_against(&base(own)).unwrap();
            assert_eq!(served.modules().len(), NAMES.len());
            assert_eq!(served.base_tensors().keys().collect::<Vec<_>>(), [&format!("{own}embed_tokens.weight")]);
            let [warning] = served.warnings() else { panic!("one change, one warning") };
            assert!(warning.text.contains(&format!("`{other}`")) && warning.text.contains(&format!("`{own}`")));
            let unchanged = foreign.with_modules_of(&base(other)).unwrap();
            assert!(unchanged.warnings().is_empty());
        }
    }

    #[test]
    fn the_modules_of_both_forms_have_one_path_in_the_text_model() {
        let paths =
            |prefix: &str| base(prefix).iter().map(|module| path_in_text_model(&module.path)).collect::<Vec<_>>();
        assert_eq!(paths(TEXT_MODEL), paths(ALONE));
        assert_eq!(paths(ALONE), NAMES.map(|(path, _)| path));
        let image = "model.vision_tower.layers.0.mlp.down_proj";
        assert_eq!(path_in_text_model(image), image);
    }

    #[test]
    fn both_the_paths_and_the_projections_may_be_those_of_another_base() {
        let split = adapter(["q_proj"].map(|name| format!("{TEXT_MODEL}layers.0.self_attn.{name}")));
        let served = split.with_modules_of(&base(ALONE)).unwrap();
        served.check_against(&base(ALONE)).unwrap();
        assert_eq!(served.warnings().len(), 2);
    }

    #[test]
    fn what_is_of_neither_form_stays_and_is_refused() {
        let both = [ALONE, TEXT_MODEL].map(|prefix| format!("{prefix}layers.0.mlp.down_proj"));
        let image = ["model.vision_tower.layers.0.mlp.down_proj".to_owned()];
        for foreign in [adapter(both), adapter(image)] {
            for prefix in [ALONE, TEXT_MODEL] {
                let same = foreign.clone().with_modules_of(&base(prefix)).unwrap();
                assert_eq!(same.modules(), foreign.modules());
                assert!(same.check_against(&base(prefix)).is_err());
            }
        }
    }
}
