//! The message for an adapter that is given as a base.

use crate::hub::repository::{Repository, RepositoryKind};
use lorakit_adapter::CONFIG_FILE;
use lorakit_format::non_finite_json::non_finite_as_null;
use serde_json::Value;
use std::path::Path;

/// What to say of an adapter in place of a base; `folder` holds its configuration, which names its own base.
pub fn not_a_base(folder: &Path) -> String {
    let text = lorakit_format::read_text(&folder.join(CONFIG_FILE)).unwrap_or_default();
    let config: Value = serde_json::from_slice(&non_finite_as_null(text.as_bytes())).unwrap_or_default();
    match config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()) {
        None => "an adapter, not a base".to_owned(),
        Some(name) => {
            let parsed = Repository::parse(RepositoryKind::Model, name).filter(|(_, rest)| rest.is_empty());
            let hub = if parsed.is_some() && !Path::new(name).exists() { "hub:" } else { "" };
            format!("an adapter, not a base; it was made for --base {hub}{name}")
        }
    }
}
