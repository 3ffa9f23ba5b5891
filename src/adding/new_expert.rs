//! An adapter that is to be added to a library, read from its folder, and converted if it has to be.

use crate::adding::named_folder::{NamedFolder, is_gguf_file};
use crate::base::base_source::BaseSource;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use anyhow::{Context as _, Result};
use lorakit_adapter::{Adapter, AdapterError, BaseIdentity, DenseAdapter, ExpertRecord, OpaqueRecord};
use lorakit_fit::conversion::{Conversion, convert, ensure_copies};
use lorakit_fit::record_beside;
use lorakit_model::Base;
use serde_json::json;
use std::path::{Path, PathBuf};

/// An adapter to add.
pub struct NewExpert {
    /// The name of the expert.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The adapter.
    pub adapter: Adapter,
    /// Its record, if it has one.
    pub record: Option<ExpertRecord>,
    /// What its conversion took away, if it was converted.
    pub conversion: Option<Conversion>,
}

/// The base that adapters are checked against.
pub struct OpenBase {
    /// Where it is.
    pub resolved: ResolvedBase,
    /// The base.
    pub base: Base,
}

impl OpenBase {
    /// Opens a base.
    pub fn open(source: &BaseSource, context: &CommandContext) -> Result<Self> {
        let resolved = source.resolve(context)?;
        let base = resolved.base(context)?;
        Ok(Self { resolved, base })
    }
}

impl NewExpert {
    /// Reads an adapter folder with `read_folder`, whatever form its weights are in, or a GGUF adapter of `base`.
    pub fn read(
        named: &NamedFolder,
        base: Option<&BaseIdentity>,
        read_folder: fn(&Path) -> Result<Adapter, AdapterError>,
    ) -> Result<Self> {
        Ok(Self {
            name: named.name.clone(),
            folder: named.folder.clone(),
            adapter: match is_gguf_file(&named.folder) {
                true => Adapter::read_gguf(&named.folder, base)?,
                false => read_folder(&named.folder)?,
            },
            record: record_beside(&named.folder)?,
            conversion: None,
        })
    }

    /// Reads an adapter folder, and truncates what has full rank to `rank`; what it changes in an image encoder is left out
    /// first if `skip_image_encoder`.
    pub fn convert(
        named: &NamedFolder,
        OpenBase { resolved, base }: &OpenBase,
        rank: usize,
        skip_image_encoder: bool,
    ) -> Result<Self> {
        if is_gguf_file(&named.folder) {
            return Self::read(named, Some(base.identity()), Adapter::read_with_base_biases);
        }
        let dense = DenseAdapter::read(&named.folder)?;
        if dense.is_low_rank() && !dense.names_copies() {
            return Self::read(named, Some(base.identity()), Adapter::read_with_base_biases);
        }
        let folder = || named.folder.display().to_string();
        let text = match skip_image_encoder {
            true => dense.without_image_encoder(),
            false => dense.ensure_no_image_encoder().map(|()| dense),
        };
        let dense = text.with_context(folder)?.with_text_model_paths_of(&base.adaptable_modules());
        let checkpoint = resolved.checkpoint()?;
        if dense.is_low_rank() {
            // What modules_to_save names may be absent from this base.
            ensure_copies(&dense, base, &checkpoint).with_context(folder)?;
            let (name, folder, record) = (named.name.clone(), named.folder.clone(), record_beside(&named.folder)?);
            return Ok(Self { name, folder, adapter: dense.low_rank().clone(), record, conversion: None });
        }
        let converted = convert(&dense, base, &checkpoint, rank);
        let (adapter, conversion) = converted.with_context(folder)?;
        let settings = OpaqueRecord::new(&json!({ "converted": conversion }))?;
        let record = ExpertRecord {
            settings_sha256: settings.sha256(),
            settings,
            base_fingerprint: Some(base.identity().fingerprint.clone()),
            base_form: base.identity().form.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ExpertRecord::default()
        };
        let (name, folder) = (named.name.clone(), named.folder.clone());
        Ok(Self { name, folder, adapter, record: Some(record), conversion: Some(conversion) })
    }

    /// Leaves out what the adapter changes in an image encoder.
    pub(super) fn leave_out_image_encoder(&mut self) -> Result<()> {
        let text = self.adapter.clone().without_image_encoder();
        self.adapter = text.with_context(|| self.folder.display().to_string())?;
        Ok(())
    }
}
