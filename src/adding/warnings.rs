//! What a user should know of adapters that are added.

use crate::adding::new_expert::NewExpert;
use crate::base::shared_embedding::shared_embedding_warning;
use crate::command_context::CommandContext;
use crate::output::shared_a_warning;
use anyhow::Result;
use lorakit_adapter::{Adapter, Library, Warning};
use lorakit_model::Base;

/// The share of a converted adapter below which most of it is lost.
const LOW_RETENTION: f64 = 0.5;

/// Prints what reading an adapter warned about, and that its config names another base. The name is a hint only: folders
/// get renamed, and a base is identified by its shapes.
pub fn print_warnings(expert: &NewExpert, base: Option<&Base>, context: &CommandContext) -> Result<()> {
    let (folder, adapter) = (expert.folder.display(), &expert.adapter);
    let warn = |warning: &Warning| context.warn(format!("{folder}: {warning}"));
    adapter.warnings().iter().try_for_each(warn)?;
    if let Some(conversion) = expert.conversion.as_ref().filter(|conversion| conversion.retained() < LOW_RETENTION) {
        context.warn(format!(
            "{folder}: at rank {} only {:.0} % of its changes are retained, by their squared norms; use a higher rank",
            conversion.rank,
            100.0 * conversion.retained()
        ))?;
    }
    let adapts = |module: &str| adapter.modules().contains_key(module);
    base.and_then(|base| shared_embedding_warning(base, adapts)).iter().try_for_each(warn)?;
    // Of an adapter made by lorakit, the fingerprint counts and not the name.
    let trained = expert.record.as_ref().and_then(|record| record.base_fingerprint.as_ref());
    let base = base.filter(|base| trained != Some(&base.identity().fingerprint));
    let last = |name: &str| {
        let name = name.trim_end_matches('/').rsplit(['/', '\\']).next()?.to_lowercase();
        Some(name.trim_end_matches(".gguf").to_owned())
    };
    match (&adapter.metadata().base_model, base.map(|base| base.identity().name.as_str())) {
        (Some(named), Some(base)) if last(named) != last(base) => context.warn(format!(
            "{folder}: base_model_name_or_path is `{named}`, but it is added for `{base}`, whose modules match"
        )),
        _ => Ok(()),
    }
}

/// Says which adapters, with those of the library, have the same A.
pub fn warn_of_added_a(experts: &[NewExpert], library: &Library, context: &CommandContext) -> Result<()> {
    // Reading an adapter reads all of its weights.
    const COMPARED: usize = 32;
    let names = library.expert_names()?.into_iter().take(COMPARED);
    let present: Vec<(String, Adapter)> =
        names.map(|name| Ok((name.clone(), library.adapter(&name)?))).collect::<Result<_>>()?;
    let present = present.iter().map(|(name, adapter)| (name.as_str(), adapter));
    let added = experts.iter().map(|expert| (expert.name.as_str(), &expert.adapter));
    let all: Vec<(&str, &Adapter)> = present.chain(added).collect();
    let advice = ": clusters of their parameters would follow that A and not the tasks; cluster them by --space delta, the default";
    let concern = |names: &[String]| experts.iter().any(|expert| names.contains(&expert.name));
    shared_a_warning::warn_of_shared_a(&all, concern, advice, context);
    Ok(())
}
