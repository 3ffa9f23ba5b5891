//! No expert: the base as it is.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::method_info::{MethodInfo, no_settings};
use crate::method_settings::read_none;
use crate::router::{Router, RouterContext};
use lorakit_lora::Patches;
use std::fmt;
use std::sync::Arc;

/// The router `base`.
pub static BASE: MethodInfo<dyn Router> = MethodInfo {
    name: "base",
    aliases: &[],
    summary: "no expert: the base model as it is",
    link: None,
    defaults: no_settings,
    parse: |name, typed| read_none(name, typed).map(|()| Arc::new(NoExpert) as Arc<dyn Router>),
    version: 1,
};

/// The router `base`, which serves no expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoExpert;

impl fmt::Display for NoExpert {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(BASE.name)
    }
}

impl Router for NoExpert {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &BASE
    }

    fn patches(&self, _: &LibraryStack, _: &RouterContext) -> Result<Patches> {
        Ok(Patches::none())
    }

    fn served(&self, _: &[&str], _: &[(String, Vec<String>)]) -> Option<Vec<String>> {
        Some(Vec::new())
    }

    fn uses_experts(&self) -> bool {
        false
    }
}
