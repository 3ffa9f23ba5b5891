//! What sits in the base's slots: nothing, one adapter, or a library under a router.

use crate::experts;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_adapter::Patches;
use lorakit_model::Base;
use lorakit_route::{Router, Setting};
use std::path::PathBuf;

/// The options that say what is added to a base.
#[derive(Args, Debug)]
pub struct SlotArgs {
    /// A library of experts, for --router
    #[arg(long, value_name = "L", requires = "router")]
    library: Option<PathBuf>,
    /// How the library's experts serve tokens, such as arrow:top_k=2 or expert:NAME
    #[arg(long, value_name = "R")]
    router: Option<Router>,
    /// One PEFT adapter folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["library", "router"])]
    adapter: Option<PathBuf>,
}

impl SlotArgs {
    /// The patches for an open base.
    pub fn patches(&self, base: &Base) -> Result<Patches> {
        if let Some(folder) = &self.adapter {
            return Ok(lorakit_route::expert::one(&experts::single(folder, base)?, 0)?);
        }
        match &self.router {
            None | Some(Router::Base) => Ok(Patches::none()),
            Some(router) => {
                let library = self.library.as_deref().with_context(|| format!("--router {router} needs --library"))?;
                Ok(router.build(&experts::open(library, base)?.experts, &Setting::default())?)
            }
        }
    }
}
