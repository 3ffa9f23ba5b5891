//! A warning about experts that have the same A.

use crate::command_context::CommandContext;
use lorakit_adapter::{Adapter, SharedA};

/// Warns of each group of adapters with the same A whose names `concern` the command; `advice` ends the sentence.
pub fn warn_of_shared_a(
    adapters: &[(&str, &Adapter)],
    concern: impl Fn(&[String]) -> bool,
    advice: &str,
    context: &CommandContext,
) {
    for SharedA { names, modules, total } in SharedA::groups(adapters) {
        if concern(&names) {
            let names = listed(&names);
            context.output.warn(format!("{names} have the same A in {modules} of {total} modules{advice}"));
        }
    }
}

/// Names of experts in a message; of many, the first ones.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        format!("{shown} and {} more experts", names.len() - SHOWN)
    } else {
        format!("the experts {shown}")
    }
}
