//! Whether adapters fit a base, a library and each other.

use crate::adding::new_expert::{NewExpert, OpenBase};
use crate::adding::new_experts::NewExperts;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{Adapter, Library, ensure_expert_name};
use lorakit_fit::with_tied_head;
use std::collections::BTreeSet;

/// Checks an adapter against its base: modules, widths, and what its file holds of the base itself. What has
/// other paths in another form of the base gets the base's.
pub fn check_base(expert: &mut NewExpert, OpenBase { resolved, base }: &OpenBase) -> Result<()> {
    let (modules, folder) = (base.adaptable_modules(), expert.folder.display().to_string());
    let folder = || folder.clone();
    expert.adapter = expert.adapter.clone().with_modules_of(&modules).with_context(folder)?;
    expert.adapter = with_tied_head(expert.adapter.clone(), base).with_context(folder)?;
    expert.adapter.check_against(&modules).with_context(folder)?;
    resolved.ensure_own_tensors(&expert.adapter).with_context(folder)?;
    expert.adapter = expert.adapter.clone().with_equal_base_tensors();
    Ok(())
}

/// Refuses invalid, existing and repeated names, adapters of another base, and adapters of other widths.
pub fn refuse_incompatible(experts: &mut NewExperts, library: &Library) -> Result<()> {
    let mut reference = match library.expert_names()?.first() {
        Some(first) => Some((format!("the expert `{first}`"), library.adapter(first)?)),
        None => None,
    };
    let mut names = BTreeSet::new();
    experts.retain(|NewExpert { name, folder, adapter, record, .. }| {
        let folder = folder.display();
        ensure_expert_name(name)
            .with_context(|| format!("{folder} cannot be added as `{name}`; rename it: NAME={folder}"))?;
        ensure!(!names.contains(name), "two adapters are named `{name}`; rename one: NAME={folder}");
        ensure!(
            !library.contains(name),
            "{}: expert `{name}` already exists; use another name (NAME={folder}), or remove it with `library rm`",
            library.root().display(),
        );
        if let (Some(record), Some(base)) = (record.as_ref(), library.base()) {
            ensure!(
                base.is_base_of(record),
                "{folder}: trained on a base with fingerprint {}, but the library's base `{}` has {}",
                record.base_fingerprint.as_deref().unwrap_or("none"),
                base.name,
                base.fingerprint
            );
        }
        match &reference {
            Some((other, like)) => {
                ensure_same_widths(adapter, like).with_context(|| format!("{folder} and {other}"))?
            }
            None => reference = Some((folder.to_string(), adapter.clone())),
        }
        names.insert(name.clone());
        Ok(())
    });
    Ok(())
}

/// Refuses adapters whose common modules differ in width: they are of different bases.
fn ensure_same_widths(adapter: &Adapter, other: &Adapter) -> Result<()> {
    for (path, update) in adapter.modules() {
        let Some(like) = other.modules().get(path) else { continue };
        let (own, others) = ([update.input(), update.output()], [like.input(), like.output()]);
        ensure!(
            own == others,
            "module `{path}` is {own:?} in one and {others:?} in the other [input, output]; a library has one base"
        );
    }
    Ok(())
}
