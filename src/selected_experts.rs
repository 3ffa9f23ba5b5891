//! The experts of a library, to be merged or compared.

use anyhow::{Result, ensure};
use lorakit_adapter::Library;
use lorakit_route::Expert;

/// The named experts of a library, or all.
pub fn selected_experts(library: &Library, wanted: &[String]) -> Result<Vec<Expert>> {
    let names = if wanted.is_empty() { library.expert_names()? } else { wanted.to_vec() };
    ensure!(
        !names.is_empty(),
        "{}: the library has no experts; `lorakit train-experts` and `lorakit library add` add some",
        library.root().display()
    );
    names.into_iter().map(|name| Ok(Expert::new(name.clone(), library.adapter(&name)?))).collect()
}
