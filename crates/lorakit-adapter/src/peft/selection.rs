//! Whether the configuration and the tensors of an adapter agree on which modules are adapted.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{AdapterError, Result};
use crate::name_list::quote_names;
use crate::peft::peft_config::PeftConfig;
use crate::peft::target_modules::missing_targets;
use crate::warning::Warning;

/// The subject of a warning about targets.
const TARGETS: &str = "target_modules";

/// Which modules with tensors the configuration selects.
pub(crate) struct Selection {
    /// Those that it does not select: PEFT leaves their tensors out without a word.
    pub(crate) unselected: BTreeSet<String>,
    /// Whether the configuration selects the others by the paths that they have in the base, not only by those in the
    /// file.
    pub(crate) by_own_paths: bool,
    /// Its warnings.
    pub(crate) warnings: Vec<Warning>,
}

impl Selection {
    /// The selection of `config` among `modules`: their paths, each with its path as the file has it.
    ///
    /// What the configuration names but no tensor is for is no error, as in PEFT: the base may lack it, which shows when
    /// the adapter is checked against its base.
    ///
    /// # Errors
    /// If no module is selected, or a regular expression takes too many steps.
    pub(crate) fn of(config: &PeftConfig, modules: &BTreeMap<String, String>) -> Result<Self> {
        let targets = &config.targets;
        let mut selection = Self { unselected: BTreeSet::new(), by_own_paths: true, warnings: Vec::new() };
        for (path, raw) in modules {
            let own = targets.matches(path)?;
            if !own && !targets.matches(raw)? {
                selection.unselected.insert(path.clone());
            } else {
                selection.by_own_paths &= own;
            }
        }
        let unselected: Vec<&String> = selection.unselected.iter().collect();
        if !modules.is_empty() && unselected.len() == modules.len() {
            return Err(AdapterError::Tensors(format!(
                "target_modules of adapter_config.json selects none of the modules with tensors: {}; correct it, or use the \
                 tensors that belong to it",
                quote_names(&unselected)
            )));
        }
        if !unselected.is_empty() {
            selection.warn(
                TARGETS,
                format!("does not select {}, whose tensors are left out, as in PEFT", quote_names(&unselected)),
            );
        }
        selection.warn_of_unused(config, modules)?;
        Ok(selection)
    }

    /// Warns of what the configuration names but no tensor is for.
    fn warn_of_unused(&mut self, config: &PeftConfig, modules: &BTreeMap<String, String>) -> Result<()> {
        let kept = || modules.iter().filter(|(path, _)| !self.unselected.contains(*path));
        let both: Vec<&str> = kept().flat_map(|(path, raw)| [path.as_str(), raw.as_str()]).collect();
        let own: Vec<&str> = kept().map(|(path, _)| path.as_str()).collect();
        let mut warnings = Vec::new();
        let unmatched = config.targets.unmatched(&both)?;
        if !unmatched.is_empty() {
            let text =
                format!("no tensor is for {}; PEFT ignores it where the base has no such module", unmatched.join(", "));
            warnings.push(Warning::new(TARGETS, text));
        }
        if config.targets.is_specified() {
            let missing = missing_targets(&config.targets, &own)?;
            if !missing.is_empty() {
                let text = format!(
                    "no tensor is for {}, though it selects them like their counterparts in other layers: the base has no such \
                     modules, or the file is incomplete",
                    quote_names(&missing)
                );
                warnings.push(Warning::new(TARGETS, text));
            }
        }
        for (key, pattern) in config.unmatched_patterns(&both)? {
            warnings.push(Warning::new(key, format!("`{pattern}` matches no module; it is ignored, as in PEFT")));
        }
        self.warnings.extend(warnings);
        Ok(())
    }

    fn warn(&mut self, subject: &str, text: String) {
        self.warnings.push(Warning::new(subject, text));
    }
}
