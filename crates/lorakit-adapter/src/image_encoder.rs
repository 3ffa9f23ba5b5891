//! What adapters change in the image encoder of a multimodal model, or in its projection into the text model: lorakit computes
//! the text model alone.

use crate::error::{AdapterError, Result};
use crate::name_list::quote_names;
use crate::warning::Warning;

/// What the paths of modules and the names of tensors start with that are of images, in files of transformers 4.52 and later
/// and of earlier versions.
pub const IMAGE_MODULES: [&str; 4] =
    ["model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector."];

/// Whether a module or tensor is of images.
pub(crate) fn is_of_images(path: &str) -> bool {
    IMAGE_MODULES.iter().any(|prefix| path.starts_with(prefix))
}

/// How many tensors of an adapter belong to the image encoder.
pub(crate) struct ImageTensors<'a> {
    /// Its modules that do.
    modules: Vec<&'a String>,
    /// Their tensors.
    count: usize,
    /// All tensors of the adapter.
    all: usize,
}

impl<'a> ImageTensors<'a> {
    /// Those among modules, each with the number of its tensors.
    pub(crate) fn among(modules: impl Iterator<Item = (&'a String, usize)>) -> Self {
        let mut found = Self { modules: Vec::new(), count: 0, all: 0 };
        for (module, tensors) in modules {
            found.all += tensors;
            if is_of_images(module) {
                found.modules.push(module);
                found.count += tensors;
            }
        }
        found
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Refuses the adapter with them.
    pub(crate) fn refusal(&self) -> AdapterError {
        let Self { modules, count, all } = self;
        AdapterError::AdapterBase(format!(
            "{count} of its {all} tensors belong to the image encoder, which lorakit does not compute: those of {}; \
             `--skip-image-encoder` of `library add` and `library import` leaves them out, after which text behavior is \
             unchanged and the image encoder is left as in the base; or train with target_modules of the language model \
             alone",
            quote_names(modules)
        ))
    }

    /// What to say where they are left out.
    ///
    /// # Errors
    /// If there are no others.
    pub(crate) fn left_out(&self) -> Result<Warning> {
        let Self { count, all, .. } = self;
        if count == all {
            return Err(AdapterError::AdapterBase(format!(
                "all of its {all} tensors belong to the image encoder, which lorakit does not compute; nothing would be left"
            )));
        }
        let text = format!(
            "{count} of its {all} tensors were left out: text behavior is unchanged, and the image encoder is left as in the \
             base"
        );
        Ok(Warning::new("image encoder", text))
    }
}
