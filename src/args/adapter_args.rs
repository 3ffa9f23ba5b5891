//! What sits in the base's slots: nothing, one adapter, or a library under a router.

use crate::args::router_arg::RouterArg;
use crate::args::task_args::{DataArgs, FitArgs};
use crate::args::usage;
use crate::base::resolved_base::ResolvedBase;
use crate::context::Context;
use crate::output::text_table::help_entry;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_fit::router::{RoutedPatches, build_router};
use lorakit_fit::{FitContext, OpenLibrary, open_adapter};
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_route::{ROUTERS, single_expert};
use std::path::PathBuf;

/// The options that say what is added to a base.
#[derive(Args, Debug)]
pub struct AdapterArgs {
    /// A library of experts, for --router
    #[arg(long, value_name = "L", requires = "router")]
    library: Option<PathBuf>,
    /// How the library's experts serve tokens, such as arrow:top_k=2; all are listed below
    #[arg(long, value_name = "R")]
    router: Option<RouterArg>,
    /// One PEFT adapter folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["library", "router"])]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    fit: FitArgs,
    #[command(flatten)]
    data: DataArgs,
}

/// The routers, for --help.
pub fn routers() -> String {
    let lines = ROUTERS.iter().map(|about| help_entry(&about.usage(), &about.description())).collect::<Vec<_>>();
    format!("Routers, with their settings and defaults:\n{}", lines.join("\n"))
}

impl AdapterArgs {
    /// Refuses what cannot be meant, before anything is opened.
    pub fn ensure_usage(&self) -> Result<()> {
        match &self.router {
            Some(typed) if typed.router.uses_experts() => {
                usage::ensure(self.library.is_some(), || format!("--router {typed} needs --library"))
            }
            _ => Ok(()),
        }
    }

    /// What fills the slots of an open base.
    pub fn fill<'a>(&self, base: &'a Base, place: &ResolvedBase, context: &Context) -> Result<RoutedPatches<'a>> {
        if let Some(folder) = &self.adapter {
            return Ok(RoutedPatches::plain(single_expert(&open_adapter(folder, base)?, 0)?));
        }
        self.ensure_usage()?;
        let (Some(typed), Some(library)) = (&self.router, self.library.as_deref()) else {
            return Ok(RoutedPatches::plain(Patches::none()));
        };
        if !typed.router.uses_experts() {
            // It serves no expert, but a library that is not there is a slip.
            Library::open(library)?;
            return Ok(RoutedPatches::plain(Patches::none()));
        }
        let opened = OpenLibrary::open(library, base, &[])?;
        let data = self.data.data.as_deref();
        let fit = self.fit.load(data)?;
        let tokenizer = || place.tokenizer();
        let seed = context.seed;
        let over =
            FitContext { base, library: &opened, tokenizer: &tokenizer, tasks: &fit, data, seed, reporter: context };
        build_router(&over, &*typed.router, None, None).with_context(|| format!("--router {typed}"))
    }
}
