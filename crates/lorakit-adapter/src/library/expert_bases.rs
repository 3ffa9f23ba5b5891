//! Whether the experts of a library were made for one base, as far as their files say.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::library::library_store::Library;
use crate::peft::adapter_files::CONFIG_FILE;
use crate::peft::peft_config::PeftConfig;

/// What is known of the base that an expert, or the library, was made for.
struct KnownBase {
    /// Whose base it is, for people.
    owner: String,
    /// Its fingerprint, where lorakit made the expert.
    fingerprint: Option<String>,
    /// Whether its weights are in another form than a Hugging Face folder's.
    is_other_form: bool,
    /// `base_model_name_or_path`.
    name: Option<String>,
}

impl Library {
    /// Whether two of the experts `names`, or one and the library, are of different bases: by fingerprint where both have
    /// one; else two experts by the last part of `base_model_name_or_path`. That name is only advice, since folders get
    /// renamed, so this is a text for a warning: it names both.
    ///
    /// # Errors
    /// If an expert's configuration or record cannot be read.
    pub fn differing_bases(&self, names: &[String]) -> Result<Option<String>> {
        let mut known = Vec::new();
        known.extend(self.base().map(|base| KnownBase {
            owner: "the library".to_owned(),
            fingerprint: Some(base.fingerprint.clone()),
            is_other_form: base.form.is_some(),
            // Its experts were checked against it when they were added, whatever they call it.
            name: None,
        }));
        for name in names {
            let record = self.record(name)?.unwrap_or_default();
            known.push(KnownBase {
                owner: format!("the expert `{name}`"),
                is_other_form: record.base_form.is_some(),
                fingerprint: record.base_fingerprint,
                name: PeftConfig::read(&self.expert_folder(name)?.join(CONFIG_FILE))?.metadata.base_model,
            });
        }
        // One of each kind: pairs of all of thousands of experts would take minutes.
        let mut kinds = BTreeSet::new();
        known.retain(|one| kinds.insert((one.fingerprint.clone(), one.name.as_deref().map(last_part))));
        let pairs =
            known.iter().enumerate().flat_map(|(at, one)| known[at + 1..].iter().map(move |other| (one, other)));
        let different = pairs.into_iter().find(|(one, other)| one.differs(other));
        Ok(different.map(|(one, other)| {
            let shown = |base: &KnownBase| {
                let name = base.name.iter().map(|name| format!("`{name}`"));
                let fingerprint =
                    base.fingerprint.iter().map(|fingerprint| format!("with the fingerprint {fingerprint}"));
                name.chain(fingerprint).collect::<Vec<_>>().join(" ")
            };
            format!(
                "{} is of the base {}, but {} is of {}; adapters of different bases do not belong together, even where \
                 their shapes agree",
                one.owner,
                shown(one),
                other.owner,
                shown(other)
            )
        }))
    }
}

impl KnownBase {
    fn differs(&self, other: &Self) -> bool {
        match (&self.fingerprint, &other.fingerprint) {
            // One base has as many fingerprints as forms.
            (Some(own), Some(others)) => own != others && !self.is_other_form && !other.is_other_form,
            _ => match (&self.name, &other.name) {
                (Some(own), Some(others)) => last_part(own) != last_part(others),
                _ => false,
            },
        }
    }
}

/// The last part of a Hub name or a path, in lower case.
fn last_part(name: &str) -> String {
    let name = name.trim_end_matches(['/', '\\']);
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    // A Hub name may have a revision.
    name.split('@').next().unwrap_or(name).to_lowercase()
}
