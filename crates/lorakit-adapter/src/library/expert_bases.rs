//! Whether the experts of a library were made for one base, as far as their files say.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::library::expert_record::ExpertRecord;
use crate::library::library_store::Library;
use crate::peft::adapter_files::CONFIG_FILE;
use crate::peft::peft_config::PeftConfig;

/// What is known of the base that an expert, or the library, was made for.
struct KnownBase<'a> {
    /// Whose base it is, for people.
    owner: String,
    /// Its fingerprint, where lorakit made the expert.
    fingerprint: Option<&'a str>,
    /// Whether its weights are in another form than a Hugging Face folder's.
    is_other_form: bool,
    /// `base_model_name_or_path`.
    name: Option<&'a str>,
}

impl Library {
    /// Whether two of the experts `names`, or one and the library, are of different bases: by fingerprint where both have
    /// one; else two experts by the last part of `base_model_name_or_path`. That name is only advice, since folders get
    /// renamed, so this is a text for a warning: it names both.
    ///
    /// # Errors
    /// If an expert's configuration or record cannot be read.
    pub fn differing_bases(&self, names: &[String]) -> Result<Option<String>> {
        let mut read = Vec::with_capacity(names.len());
        for name in names {
            let config = PeftConfig::read(&self.expert_folder(name)?.join(CONFIG_FILE))?;
            read.push((name, self.record(name)?, config.metadata.base_model));
        }
        let experts = read.iter().map(|(name, record, base)| (name.as_str(), record.as_ref(), base.as_deref()));
        Ok(self.differing_bases_of(experts))
    }

    /// The same of experts that were read: the name, the record and `base_model_name_or_path` of each.
    pub fn differing_bases_of<'a>(
        &self,
        experts: impl Iterator<Item = (&'a str, Option<&'a ExpertRecord>, Option<&'a str>)>,
    ) -> Option<String> {
        let mut known = Vec::new();
        known.extend(self.base().map(|base| KnownBase {
            owner: "the library".to_owned(),
            fingerprint: Some(&base.fingerprint),
            is_other_form: base.form.is_some(),
            // Its experts were checked against it when they were added, whatever they call it.
            name: None,
        }));
        known.extend(experts.map(|(name, record, base)| KnownBase {
            owner: format!("the expert `{name}`"),
            is_other_form: record.is_some_and(|record| record.base_form.is_some()),
            fingerprint: record.and_then(|record| record.base_fingerprint.as_deref()),
            name: base,
        }));
        // One of each kind: pairs of all of thousands of experts would take minutes.
        let mut kinds = BTreeSet::new();
        known.retain(|one| kinds.insert((one.fingerprint, one.name.map(last_part))));
        let pairs =
            known.iter().enumerate().flat_map(|(at, one)| known[at + 1..].iter().map(move |other| (one, other)));
        let different = pairs.into_iter().find(|(one, other)| one.differs(other));
        different.map(|(one, other)| {
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
        })
    }
}

impl KnownBase<'_> {
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

/// The last part of a Hub name or a path, in lower case and without the ending of a GGUF file.
fn last_part(name: &str) -> String {
    let name = name.trim_end_matches(['/', '\\']);
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    // A Hub name may have a revision.
    name.split('@').next().unwrap_or(name).to_lowercase().trim_end_matches(".gguf").to_owned()
}
