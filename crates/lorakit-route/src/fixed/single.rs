//! One expert on all tokens.

use crate::error::{Result, RouteError};
use crate::fixed::every_token::EveryToken;
use crate::library_stack::LibraryStack;
use crate::method_info::MethodInfo;
use crate::router::{Router, RouterContext};
use crate::site_lora::SiteLora;
use crate::site_patches::site_patches;
use lorakit_lora::{Patch, Patches};
use std::fmt;
use std::sync::Arc;

/// The router `expert:NAME`.
pub static EXPERT: MethodInfo<dyn Router> = MethodInfo {
    name: "expert",
    aliases: &[],
    summary: "one expert, verbatim",
    link: None,
    defaults: |_| "NAME".to_owned(),
    parse: |method, name| match name {
        Some(name) if !name.is_empty() => Ok(Arc::new(SingleExpert { name: name.to_owned() })),
        _ => Err(RouteError::InvalidSetting {
            method: method.to_owned(),
            problem: "no name is given".to_owned(),
            known: "the name of one expert, as in expert:boolq".to_owned(),
        }),
    },
    version: 1,
};

/// The router `expert:NAME`: one expert's adapter on every token, as it was trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingleExpert {
    /// The expert's name.
    pub name: String,
}

impl fmt::Display for SingleExpert {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", EXPERT.name, self.name)
    }
}

impl Router for SingleExpert {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &EXPERT
    }

    fn patches(&self, experts: &LibraryStack, _: &RouterContext) -> Result<Patches> {
        single_expert(experts, experts.index(&self.name)?)
    }

    fn only_expert(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn served(&self, _: &[&str], experts: &[(String, Vec<String>)]) -> Option<Vec<String>> {
        experts.iter().find(|(name, _)| *name == self.name).map(|(name, _)| vec![name.clone()])
    }
}

/// The patches of one expert, by its index, on all tokens.
///
/// # Errors
/// If a tensor cannot be made.
pub fn single_expert(experts: &LibraryStack, expert: usize) -> Result<Patches> {
    site_patches(experts, |_, _, stack| {
        Ok(stack.only(expert)?.map(|lora| Arc::new(EveryToken(SiteLora(lora))) as Arc<dyn Patch>))
    })
}
