//! Which layers of a base have an attention of their own: `layer_types` of its `config.json`, and how each kind rotates.

use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::rope_config::{RopeConfig, RotaryFactor};
use crate::error::Result;
use serde_json::json;

/// For each layer whether it is local: what `layer_types` says, or else `default`.
pub(crate) fn local_layers(json: &ConfigKeys, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = json.of_layers("layer_types", layers)? else { return Ok((0..layers).map(default).collect()) };
    let is_local = |kind: &serde_json::Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(json.error(format!(
            "key `layer_types` names {kind}; supported are \"full_attention\" and \"sliding_attention\""
        ))),
    };
    types.iter().map(is_local).collect()
}

/// The rotary embeddings of global and of local layers: those of `rope_parameters` by the kind of layer, with `thetas` where
/// they do not say. `rope_scaling` is of global layers, without the older name of its kind: see
/// [`scaling_warnings`].
pub(crate) fn ropes(json: &ConfigKeys, thetas: [f64; 2], head_dim: usize) -> Result<[RopeConfig; 2]> {
    let parameters = json.nested_or_empty("rope_parameters")?;
    let of = |kind: &str, theta: f64| -> Result<ConfigKeys> {
        Ok(parameters.nested_or_empty(kind)?.with_defaults(json!({ "rope_theta": theta })))
    };
    let (global, local) = (of("full_attention", thetas[0])?, of("sliding_attention", thetas[1])?);
    let global = if parameters.is_empty() { global.with_value("rope_type", "default") } else { global };
    let global = match json.nested("rope_scaling")? {
        Some(scaling) => global.updated_with(&scaling),
        None => global,
    };
    let rope = |own: ConfigKeys| {
        let own = own.without(&["truncate"]);
        // transformers 5 reads this key beside the kinds of layers, not within one.
        let own = match parameters.get("truncate") {
            Some(truncate) => own.with_value("truncate", truncate.clone()),
            None => own,
        };
        RopeConfig::from_parameters(json, &own, RotaryFactor::Whole, head_dim)
    };
    Ok([rope(global)?, rope(local)?])
}

/// What to say where keys of the scaling have no effect. Here transformers 5 reads the kind of `rope_scaling` by the name
/// `rope_type` alone, unless `rope_parameters` are there, too; and `truncate` as [`ropes`] does.
pub(crate) fn scaling_warnings(json: &ConfigKeys) -> Result<Vec<String>> {
    let (scaling, parameters) = (json.nested_or_empty("rope_scaling")?, json.nested_or_empty("rope_parameters")?);
    let has_no_effect = scaling.get("rope_type").is_none() && parameters.is_empty();
    let kind = scaling.get("type").filter(|kind| has_no_effect && *kind != "default").map(|kind| {
        json.message(&format!(
            "key `rope_scaling` names its kind, {kind}, as `type`, which has no effect in such models, as in transformers 5; \
             to scale, name it `rope_type`"
        ))
    });
    let of_layers = [parameters.nested_or_empty("full_attention")?, parameters.nested_or_empty("sliding_attention")?];
    let is_whole = |keys: &ConfigKeys| keys.flag("truncate", true);
    let mut truncate = None;
    for keys in of_layers.iter().chain([&scaling]) {
        if !is_whole(keys)? && is_whole(&parameters)? {
            truncate = Some(json.message(
                "`truncate` in the scaling of rotary frequencies has no effect in such models, as in transformers 5",
            ));
        }
    }
    Ok(kind.into_iter().chain(truncate).collect())
}
