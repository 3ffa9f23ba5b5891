//! The models of a library: fully fine-tuned bases, each a Hugging Face model folder with a record next to its weights.

use std::fs;
use std::path::{Path, PathBuf};

use lorakit_format::hash::sha256_of_file;
use lorakit_format::{FormatError, atomic};

use crate::error::{AdapterError, Result, Within};
use crate::library::expert_name::ensure_expert_name;
use crate::library::expert_record::ExpertRecord;
use crate::library::json_file::{read_json_if_exists, write_json};
use crate::library::library_layout::{MODELS, subfolder, subfolder_names};
use crate::library::library_store::Library;

/// The record of how a model was made, in its folder. Other tools ignore it.
pub const MODEL_RECORD_FILE: &str = "lorakit.json";

/// The file that holds a model's weights.
pub const MODEL_WEIGHTS_FILE: &str = "model.safetensors";

impl Library {
    /// The names of all models, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn model_names(&self) -> Result<Vec<String>> {
        subfolder_names(self.root(), MODELS)
    }

    /// Whether there is a model `name`.
    pub fn contains_model(&self, name: &str) -> bool {
        ensure_expert_name(name).is_ok() && self.root().join(MODELS).join(name).is_dir()
    }

    /// Where the model `name` is or would be: a folder that is a base.
    ///
    /// # Errors
    /// If the name is not a valid one ([`ensure_expert_name`]), or the folder is a link.
    pub fn model_folder(&self, name: &str) -> Result<PathBuf> {
        subfolder(self.root(), MODELS, name)
    }

    /// How the model `name` was made, if that is recorded.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn model_record(&self, name: &str) -> Result<Option<ExpertRecord>> {
        read_json_if_exists(&self.model_folder(name)?.join(MODEL_RECORD_FILE))
    }

    /// Puts a model into the library, replacing one of that name. `fill` writes the model folder, with the weights in
    /// [`MODEL_WEIGHTS_FILE`]; the record's `sha256` is set to that of the weights. The model appears whole.
    ///
    /// # Errors
    /// If the name is not a valid one, `fill` fails, or the folder cannot be written.
    pub fn put_model<E: From<AdapterError> + From<FormatError>>(
        &self,
        name: &str,
        record: &ExpertRecord,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = self.model_folder(name)?;
        let models = self.root().join(MODELS);
        fs::create_dir_all(&models).within_file(&models)?;
        // First: a kill must not leave a model without its base.
        self.record_base()?;
        atomic::replace_folder(&place, |folder| -> Result<(), E> {
            fill(folder)?;
            let sha256 = sha256_of_file(&folder.join(MODEL_WEIGHTS_FILE))?;
            write_json(&folder.join(MODEL_RECORD_FILE), &ExpertRecord { sha256, ..record.clone() })?;
            Ok(self.ensure_held()?)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_model_appears_whole_and_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open_or_create(&folder.path().join("l"), None).unwrap();
        let put = |text: &'static str| {
            let fill = move |folder: &Path| -> Result<()> { Ok(fs::write(folder.join(MODEL_WEIGHTS_FILE), text)?) };
            library.put_model("full", &ExpertRecord { tokens: 7, ..ExpertRecord::default() }, fill)
        };
        assert!(library.model_names().unwrap().is_empty() && !library.contains_model("full"));
        put("one").unwrap();
        put("two").unwrap();
        assert_eq!(library.model_names().unwrap(), ["full"]);
        let weights = library.model_folder("full").unwrap().join(MODEL_WEIGHTS_FILE);
        assert_eq!(fs::read_to_string(&weights).unwrap(), "two");
        let record = library.model_record("full").unwrap().unwrap();
        assert_eq!((record.tokens, record.sha256.clone()), (7, sha256_of_file(&weights).unwrap()));
        let failed = library.put_model("full", &record, |_| Err(AdapterError::Tensors("no room".to_owned())));
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&weights).unwrap(), "two", "a failed writer leaves what was there");
        assert!(library.put_model("../full", &record, |_| -> Result<()> { Ok(()) }).is_err());
    }
}
