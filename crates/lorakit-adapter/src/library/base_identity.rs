//! Which base a library or an expert belongs to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result};
use crate::library::expert_record::ExpertRecord;

/// Which base an expert or a library belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseIdentity {
    /// The name that it was opened with, for information; it is not compared.
    pub name: String,
    /// Whether that is its name on the Hub; None in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_hub: Option<bool>,
    /// Its architecture, as config.json names it.
    pub architecture: String,
    /// Its dimensions, by their names in config.json.
    pub dimensions: BTreeMap<String, u64>,
    /// The hash of its configuration, headers and sampled weights.
    pub fingerprint: String,
    /// The form of its weights where it is not that of Hugging Face's folders, as in `GGUF Q4_1 Q8_0 F32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
}

/// Architectures of one family, which a GGUF file does not tell apart.
const ONE_IN_GGUF: [&str; 2] = ["llama", "mistral"];

/// Multimodal architectures, whose module paths are not those of the text model alone, each with that text model in GGUF.
const MULTIMODAL: [(&str, &[&str]); 2] = [("gemma3", &["gemma3_text"]), ("mistral3", &ONE_IN_GGUF)];

impl BaseIdentity {
    /// Checks that `other` is the same base, whatever its name. Where one is quantized, or in GGUF, the other may have it in
    /// another form: see [`BaseIdentity::other_form`].
    ///
    /// # Errors
    /// If architecture, dimensions or fingerprint differ; the error says which, with both values.
    pub fn ensure_same(&self, other: &Self) -> Result<()> {
        self.ensure_one(other, self.has_one_form_of(other))
    }

    /// Checks, as [`BaseIdentity::ensure_same`] does, that adapters of this base can be served over `other`, which may also
    /// be the text model of this multimodal base alone in GGUF, or the other way round: their module paths differ then, and
    /// the adapters need those of `other` ([`crate::Adapter::with_text_model_of`]). One library holds no adapters of both.
    ///
    /// # Errors
    /// As [`BaseIdentity::ensure_same`].
    pub fn ensure_serves(&self, other: &Self) -> Result<()> {
        let is_text_model = |whole: &Self, text: &Self| {
            let of = MULTIMODAL.iter().find(|(architecture, _)| *architecture == whole.architecture);
            of.is_some_and(|(_, texts)| text.form.is_some() && texts.contains(&text.architecture.as_str()))
        };
        let is_one = self.has_one_form_of(other) || is_text_model(self, other) || is_text_model(other, self);
        self.ensure_one(other, is_one)
    }

    /// Whether both may have one architecture, written down differently.
    fn has_one_form_of(&self, other: &Self) -> bool {
        let are_forms = self.form.is_some() || other.form.is_some();
        are_forms && [self, other].iter().all(|base| ONE_IN_GGUF.contains(&base.architecture.as_str()))
    }

    fn ensure_one(&self, other: &Self, is_one: bool) -> Result<()> {
        let (own_name, other_name) = (&self.name, &other.name);
        let are_forms = self.form.is_some() || other.form.is_some();
        if self.architecture != other.architecture && !is_one {
            return Err(AdapterError::LibraryBase(format!(
                "it belongs to the base `{own_name}` ({}), not to `{other_name}` ({})",
                self.architecture, other.architecture
            )));
        }
        for key in self.dimensions.keys().chain(other.dimensions.keys()) {
            let [own, given] = [self, other].map(|base| base.dimensions.get(key));
            let show = |value: Option<&u64>| value.map_or_else(|| "none".to_owned(), u64::to_string);
            if own != given {
                return Err(AdapterError::LibraryBase(format!(
                    "it belongs to the base `{own_name}` with {key} {}, but `{other_name}` has {}",
                    show(own),
                    show(given)
                )));
            }
        }
        if self.fingerprint != other.fingerprint && !are_forms {
            return Err(AdapterError::LibraryBase(format!(
                "it belongs to the base `{own_name}` with the fingerprint {}, but `{other_name}` has {}: other weights of \
                 the same shapes",
                self.fingerprint, other.fingerprint
            )));
        }
        Ok(())
    }

    /// Whether an expert with this record was trained over this base, in whatever form, as far as the record says.
    pub fn is_base_of(&self, record: &ExpertRecord) -> bool {
        let same = record.base_fingerprint.as_ref().is_none_or(|trained| *trained == self.fingerprint);
        same || self.form.is_some() || record.base_form.is_some()
    }

    /// What to say where `other`, which [`BaseIdentity::ensure_same`] accepts, has its weights in another form: nothing tells
    /// whether both were made from the same model.
    pub fn other_form(&self, other: &Self) -> Option<String> {
        let shown = |base: &Self| {
            let form = base.form.clone().unwrap_or_else(|| "as in a Hugging Face folder".to_owned());
            format!("`{}` ({form})", base.name)
        };
        (self.fingerprint != other.fingerprint).then(|| {
            format!(
                "belongs to the base {}, and {} is taken to be another form of it: architecture and dimensions are the same, \
                 the weights are not",
                shown(self),
                shown(other)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn base(architecture: &str, fingerprint: &str, form: Option<&str>) -> BaseIdentity {
        BaseIdentity {
            name: "b".to_owned(),
            on_hub: None,
            architecture: architecture.to_owned(),
            dimensions: BTreeMap::from([("hidden".to_owned(), 8)]),
            fingerprint: fingerprint.to_owned(),
            form: form.map(str::to_owned),
        }
    }

    #[test]
    fn another_form_of_a_base_is_the_same_base() {
        let folder = base("mistral", "a", None);
        let file = base("llama", "b", Some("GGUF Q4_0 F32"));
        folder.ensure_same(&file).unwrap();
        file.ensure_same(&folder).unwrap();
        assert!(folder.other_form(&file).unwrap().contains("`b` (GGUF Q4_0 F32)"));
        assert_eq!(file.other_form(&file.clone()), None);
        let refused = folder.ensure_same(&base("mistral", "b", None)).unwrap_err().to_string();
        assert!(refused.starts_with("it belongs to the base `b` with the fingerprint a"), "{refused}");
        let trained = |form: Option<&str>| ExpertRecord {
            base_fingerprint: Some("b".to_owned()),
            base_form: form.map(str::to_owned),
            ..ExpertRecord::default()
        };
        assert!(folder.is_base_of(&trained(Some("GGUF Q4_0 F32"))) && !folder.is_base_of(&trained(None)));
        assert!(folder.ensure_same(&base("qwen2", "b", Some("GGUF Q4_0 F32"))).is_err());
        // A multimodal base is served by the GGUF file of its text model, which is no second base of its library.
        let whole = base("mistral3", "c", None);
        for (own, other) in [(&whole, &file), (&file, &whole)] {
            own.ensure_serves(other).unwrap();
            assert!(own.ensure_same(other).is_err());
        }
        assert!(whole.ensure_serves(&folder).is_err() && base("gemma3", "c", None).ensure_serves(&file).is_err());
        let wider = BaseIdentity { dimensions: BTreeMap::from([("hidden".to_owned(), 9)]), ..file };
        assert!(folder.ensure_same(&wider).is_err() && whole.ensure_serves(&wider).is_err());
    }
}
