//! Which layers of a base have an attention of their own: `layer_types` of its `config.json`.

use crate::architecture::config_keys::ConfigKeys;
use crate::error::Result;

/// For each layer whether it is local: what `layer_types` says, or else `default`.
pub(crate) fn local_layers(json: &ConfigKeys, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = json.of_layers("layer_types", layers)? else { return Ok((0..layers).map(default).collect()) };
    let is_local = |kind: &serde_json::Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(json.error(format!(
            "key 'layer_types' names {kind}; supported are \"full_attention\" and \"sliding_attention\""
        ))),
    };
    types.iter().map(is_local).collect()
}
